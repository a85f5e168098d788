"""Recipes: plain functions that return the configuration of a run.

To change one: ``recipe().replace(num_epochs=20)``.
"""

from collections.abc import Callable

from scrimp._core.names import nearest
from scrimp.errors import ConfigError
from scrimp.train.config import TrainConfig


def digits() -> TrainConfig:
    """Handwritten digits of 8 x 8 pixels that come with scikit-learn: needs no data folder, takes seconds."""
    return TrainConfig(
        recipe="digits", data="digits",
        model="small-cnn", model_args={"width": 32},
        crop_padding=1, crop_mode="constant", num_epochs=40, batch_size=64, learning_rate=0.1, label_smoothing=0.1,
        threads=1, evaluate_every=5, checkpoint_every=5,  # so small that a second thread only waits
    )  # fmt: skip


def fashion_mnist() -> TrainConfig:
    """Fashion-MNIST: ResNet-9 at a quarter of its width."""
    return TrainConfig(
        recipe="fashion-mnist", data="fashion-mnist",
        model="resnet9", model_args={"width": 16},
        crop_padding=2, crop_mode="constant", flip="random", cutout=5,
        num_epochs=10, batch_size=512, learning_rate=0.4, label_smoothing=0.1,
    )  # fmt: skip


def cifar10_small() -> TrainConfig:
    """CIFAR-10 with a network that two CPU cores train in minutes."""
    return TrainConfig(
        recipe="cifar10-small", data="cifar10",
        model="airbench", model_args={"width": 48}, whiten=True, freeze_bn_scale=True, bias_scale=64,
        crop_padding=2, flip="alternating", num_epochs=9, batch_size=256,
        learning_rate=0.25, warmup=0.23, final_learning_rate=0.07, weight_decay=1e-3, label_smoothing=0.1,
        lookahead=True, evaluate_every=3,
    )  # fmt: skip


def text() -> TrainConfig:
    """A character-level GPT of about a million parameters on a text file; loss in nats per character."""
    return TrainConfig(
        recipe="text", data="text",
        model="gpt", model_args={"depth": 5, "width": 128, "num_heads": 4}, context_length=256,
        num_epochs=7, batch_size=8, optimizer="adamw", learning_rate=3e-3, beta2=0.99, weight_decay=0.1, clip_norm=1.0,
        warmup=0.05, log_every=50,
    )  # fmt: skip


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10-small": cifar10_small,
    "text": text,
}


def find_recipe(name: str) -> TrainConfig:
    """The recipe called ``name``. Raises ConfigError that names the nearest one."""
    if name not in RECIPES:
        raise ConfigError(f"no recipe is called {name!r}{nearest(name, list(RECIPES))}")
    return RECIPES[name]()
