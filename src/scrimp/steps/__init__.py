"""Fewer and cheaper steps: one file per trick, each a function or a small object for anybody's training loop."""

from scrimp.steps.batch import Batch, BatchTransform
from scrimp.steps.bn_scale import bias_rule, freeze_bn_scale_
from scrimp.steps.crop import Padding, RandomCrop
from scrimp.steps.cutout import Cutout
from scrimp.steps.device_loader import DeviceLoader
from scrimp.steps.flip import AlternatingFlip, RandomFlip
from scrimp.steps.normalize import Normalize
from scrimp.steps.whiten import whiten_input_, whitening_filters
from scrimp.steps.window import RandomWindow

__all__ = [
    "AlternatingFlip",
    "Batch",
    "BatchTransform",
    "Cutout",
    "DeviceLoader",
    "Normalize",
    "Padding",
    "RandomCrop",
    "RandomFlip",
    "RandomWindow",
    "bias_rule",
    "freeze_bn_scale_",
    "whiten_input_",
    "whitening_filters",
]
