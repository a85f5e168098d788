"""The models that ship with scrimp, and :func:`build_model`, which makes one of them or the user's own."""

from scrimp.train.models.build import MODELS, ModelFacts, build_model, check_model
from scrimp.train.models.convnets import airbench, resnet9, small_cnn
from scrimp.train.models.gpt import GPT
from scrimp.train.models.resnet import resnet18, resnet20, resnet50
from scrimp.train.models.vit import ViT

__all__ = [
    "GPT",
    "MODELS",
    "ModelFacts",
    "ViT",
    "airbench",
    "build_model",
    "check_model",
    "resnet9",
    "resnet18",
    "resnet20",
    "resnet50",
    "small_cnn",
]
