"""Recipes: plain functions that return the configuration of a run.

To change one: ``recipe().replace(num_epochs=20)``.
"""

from collections.abc import Callable

from scrimp._core.names import nearest
from scrimp.errors import ConfigError
from scrimp.steps import decoupled_sgd
from scrimp.train.config import TrainConfig
from scrimp.train.page_ladder import page_rung
from scrimp.train.variants import SAVINGS, with_savings


def digits() -> TrainConfig:
    """Handwritten digits of 8 x 8 pixels that come with scikit-learn, with all four savings; takes seconds."""
    plain = TrainConfig(
        recipe="digits", data="digits",
        model="small-cnn", model_args={"width": 32},
        crop_padding=1, crop_mode="constant", num_epochs=40, batch_size=64, learning_rate=0.1, label_smoothing=0.1,
        threads=1, evaluate_every=5, checkpoint_every=1,  # so small that a second thread only waits
    )  # fmt: skip
    return with_savings(plain, SAVINGS)


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


def cifar10() -> TrainConfig:
    """CIFAR-10 to 94 %, as fast as can be: Muon for the filters, small batches, images that grow.

    Source: K. Jordan, airbench94_muon, which has batches of 2,000 and images of full size.
    """
    plain = cifar10_sgd().replace(
        recipe="cifar10", num_epochs=12, batch_size=500, muon_learning_rate=0.15, first_learning_rate=0,
        final_learning_rate=0, evaluate_every=5,
    )  # fmt: skip
    return with_savings(plain, ("steps", "checkpoints"))


def cifar10_sgd() -> TrainConfig:
    """CIFAR-10 to 94 % with SGD alone: the airbench94 recipe as published.

    Source: K. Jordan, airbench94 (arXiv 2404.00498).
    """
    settings = decoupled_sgd(11.5, 0.0153, momentum=0.85, batch_size=1024)
    return TrainConfig(
        recipe="cifar10-sgd", data="cifar10",
        model="airbench", model_args={"width": 64, "norm_momentum": 0.4},
        whiten=True, whiten_bias_epochs=3, freeze_bn_scale=True, bias_scale=64,
        crop_padding=2, flip="alternating", views="six",
        num_epochs=9.9, batch_size=1024, learning_rate=settings.lr, weight_decay=settings.weight_decay, momentum=0.85,
        first_learning_rate=0.2, warmup=0.23, final_learning_rate=0.07, label_smoothing=0.2,
        lookahead=True, evaluate_every=5,
    )  # fmt: skip


def cifar10_page() -> TrainConfig:
    """CIFAR-10 as in Page's "Bag of Tricks": 10 epochs of ResNet-9; with --rung N an earlier rung of his ladder."""
    return page_rung()


def cifar10_96() -> TrainConfig:
    """CIFAR-10 to 96 %: a wider and deeper network for 37 epochs, as airbench96.

    Source: K. Jordan, airbench96.
    """
    settings = decoupled_sgd(9.0, 0.012, momentum=0.85, batch_size=1024)
    return cifar10_sgd().replace(
        recipe="cifar10-96",
        model_args={"width": 128, "mid_width": 384, "top_width": 512, "depth": 3},
        crop_padding=4, cutout=12, num_epochs=37,
        learning_rate=settings.lr, weight_decay=settings.weight_decay, warmup=0.1, final_learning_rate=0,
    )  # fmt: skip


def imagenet() -> TrainConfig:
    """A folder of photographs with one sub-folder per class: ResNet-50 on images that grow from 96 to 160 pixels.

    Images are decoded once, to 192 x 192, into the cache; tests see that size. The learning rate is for ImageNet's
    1,000 classes in batches of 1,024; ``--data`` is needed. Not yet run on ImageNet.

    Source: J. Howard et al., fast.ai (DAWNBench, 2018) for growing images; learning rate, decay and label smoothing of
        ffcv's ResNet-50 in 16 epochs.
    """
    return TrainConfig(
        recipe="imagenet", data="imagenet",
        model="resnet50", image_size=192, first_size=96, last_size=160, full_size_from=0.75,
        crop_scale=0.25, flip="random", views="flip",
        num_epochs=16, batch_size=1024, learning_rate=1.7, warmup=2 / 16, weight_decay=1e-4, label_smoothing=0.1,
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
    "cifar10": cifar10,
    "cifar10-sgd": cifar10_sgd,
    "cifar10-page": cifar10_page,
    "cifar10-96": cifar10_96,
    "imagenet": imagenet,
    "text": text,
}


def find_recipe(name: str, rung: int | None = None) -> TrainConfig:
    """The recipe called ``name``; of ``cifar10-page`` also an earlier ``rung`` of its ladder.

    Raises: ConfigError - no such recipe (it names the nearest one), or no such rung.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe is called {name!r}{nearest(name, list(RECIPES))}")
    if rung is None:
        return RECIPES[name]()
    if name != "cifar10-page":
        raise ConfigError(f"the recipe {name} has no rungs; --rung is for cifar10-page")
    return page_rung(rung)
