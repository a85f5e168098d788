"""ResNet-18 and ResNet-20 with the stem for 32x32 images, and ResNet-50 with that for large ones."""

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
    return _of_basic_blocks([width, 2 * width, 4 * width, 8 * width], 2, num_classes, in_channels)


def resnet20(*, num_classes: int, in_channels: int, width: int = 16) -> nn.Sequential:
    """ResNet-20 for CIFAR: a 3x3 stem, three stages of three basic blocks, a mean over the image.

    The stages have ``width``, 2 and 4 times ``width`` channels; 16 is the standard size: 272,474 parameters with
    3 channels in and 10 classes. Shortcuts that change the shape are 1x1 convolutions with batch norm (the paper's
    option B; with its option A, zeros in their place, it has 269,722).

    Source: K. He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2.
    """
    check_width(width)
    return _of_basic_blocks([width, 2 * width, 4 * width], 3, num_classes, in_channels)


def _of_basic_blocks(widths: list[int], depth: int, num_classes: int, in_channels: int) -> nn.Sequential:
    """A stem, a stage of ``depth`` blocks for each width, of which all but the first halve the image, and the head."""
    stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
    parts = OrderedDict[str, nn.Module](conv1=stem, bn1=nn.BatchNorm2d(widths[0]), relu=nn.ReLU(inplace=True))
    for number, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False), start=1):
        first = BasicBlock(before, width, 1 if number == 1 else 2)
        parts[f"layer{number}"] = nn.Sequential(first, *(BasicBlock(width, width) for _ in range(depth - 1)))
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(widths[-1], num_classes)}
    return nn.Sequential(parts)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with batch norm around a shortcut; the 3x3 one has the stride (ResNet "v1.5")."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Float[Tensor, "batch in_channel height width"]) -> Float[Tensor, "batch channel h w"]:
        """``(batch, in_channels, height, width) -> (batch, 4 * width, height / stride, width / stride)``."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def resnet50(*, num_classes: int, in_channels: int, width: int = 64, zero_last: bool = True) -> nn.Sequential:
    """ResNet-50 for large images: a 7x7 stem with pooling, stages of 3, 4, 6 and 3 bottlenecks, a mean over the image.

    ``width`` 64 is the standard size: 25,557,032 parameters with 3 channels in and 1,000 classes. Parameters have
    torchvision's names, so its weights can be loaded. ``zero_last`` starts the scale of each block's last norm at 0, so
    that blocks start as their shortcuts. Takes images from 32x32 on, of any size.

    Source: K. He et al., "Deep Residual Learning for Image Recognition" (2015); the stride as in torchvision; zero
        scales from P. Goyal et al., "Accurate, Large Minibatch SGD" (arXiv 1706.02677).
    """
    check_width(width)

    def stage(in_channels: int, width: int, depth: int, stride: int) -> nn.Sequential:
        later = [Bottleneck(Bottleneck.expansion * width, width) for _ in range(depth - 1)]
        return nn.Sequential(Bottleneck(in_channels, width, stride), *later)

    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
            layer1=stage(width, width, 3, 1),
            layer2=stage(4 * width, 2 * width, 4, 2),
            layer3=stage(8 * width, 4 * width, 6, 2),
            layer4=stage(16 * width, 8 * width, 3, 2),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(32 * width, num_classes),
        )
    )
    if zero_last:
        for block in model.modules():
            if isinstance(block, Bottleneck):
                nn.init.zeros_(block.bn3.weight)
    return model
