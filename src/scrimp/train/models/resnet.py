"""ResNet-18 with the stem for 32x32 images."""

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scrimp.train.models.convnets import check_width


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Float[Tensor, "batch in_channel height width"]) -> Float[Tensor, "batch channel h w"]:
        """``(batch, in_channels, height, width) -> (batch, out_channels, height / stride, width / stride)``."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x))


def resnet18(*, num_classes: int, in_channels: int, width: int = 64) -> nn.Sequential:
    """ResNet-18 for small images: a 3x3 stem without pooling, four stages of two basic blocks, a mean over the image.

    The stages have ``width``, 2, 4 and 8 times ``width`` channels; 64 is the standard size: 11,173,962 parameters with
    3 channels in and 10 classes. Parameters have torchvision's names, so its 3x3 weights can be loaded.

    Source: K. He et al., "Deep Residual Learning for Image Recognition" (2015).
    """
    check_width(width)

    def stage(in_width: int, out_width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(in_width, out_width, stride), BasicBlock(out_width, out_width))

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(inplace=True),
            layer1=stage(width, width, 1),
            layer2=stage(width, 2 * width, 2),
            layer3=stage(2 * width, 4 * width, 2),
            layer4=stage(4 * width, 8 * width, 2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(8 * width, num_classes),
        )
    )
