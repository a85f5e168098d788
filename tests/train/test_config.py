"""The configuration of a run: what it refuses, in which words, and that it survives JSON."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrimp.errors import ConfigError
from scrimp.train.config import TrainConfig, parse_model_arg
from scrimp.train.recipes import RECIPES

FIELDS = dataclasses.fields(TrainConfig)
# one other value per field, so that a new field without one is noticed
OTHERS: dict[str, Any] = {
    "recipe": "mine", "data": "cifar10", "crop_padding": 3, "crop_mode": "constant", "flip": "random", "cutout": 2,
    "context_length": 64, "model": "vit", "model_args": {"width": 8, "pool_early": True}, "num_epochs": 2.5,
    "batch_size": 32, "accumulation": 4, "optimizer": "adamw", "learning_rate": 0.25, "warmup": 0.5,
    "decay": "cosine", "final_learning_rate": 0.125, "momentum": 0.5, "beta2": 0.75, "weight_decay": 0.25,
    "label_smoothing": 0.25, "clip_norm": 1.5, "seed": 7, "device": "cpu", "threads": 2, "precision": "bfloat16",
    "deterministic": True, "evaluate_every": 0.5, "checkpoint_every": 2.0, "keep_checkpoints": 5, "log_every": 3,
    "checkpoint_codec": "lossless", "checkpoint_error": 0.25, "checkpoint_async": True,
    "tensorboard": True, "wandb": "project", "whiten": True, "freeze_bn_scale": True,
    "bias_scale": 64.0, "lookahead": True, "sample_rule": "random", "prune_ratio": 0.25, "keep": 0.75,
    "first_size": 6, "full_size_from": 0.75, "views": "six", "whiten_epsilon": 0.25, "whiten_bias_epochs": 1.5,
    "pool_early": "norm", "celu": 0.25, "ghost_batch": 8, "muon_learning_rate": 0.5, "muon_momentum": 0.25,
    "first_learning_rate": 0.25, "cooldown": 0.25, "decay_norms": True, "ema": 0.75,
    "image_size": 24, "last_size": 7, "crop_scale": 0.5,
    "graphs": True, "profile": True,
    "compress": True, "gamma": 0.25, "target_bytes": 5000, "quantizer": "step-range",
}  # fmt: skip
FREE_ON_RESUME = {
    "checkpoint_async", "checkpoint_codec", "checkpoint_error", "checkpoint_every", "data", "device", "evaluate_every",
    "graphs", "keep_checkpoints", "log_every", "profile", "tensorboard", "threads", "wandb",
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_explains_itself(field: dataclasses.Field[Any]) -> None:
    assert len(field.metadata["help"]) > 10
    assert field.metadata["group"] in {"run", "data", "samples", "bits", "model", "optimization", "record"}
    assert field.name in OTHERS, "give the new field another value in OTHERS"


def test_every_value_survives_json() -> None:
    config = TrainConfig(**OTHERS)
    assert all(getattr(config, name) == value != getattr(TrainConfig(), name) for name, value in OTHERS.items())
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    config = RECIPES[name]()
    assert config == TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))


def test_missing_fields_take_their_defaults() -> None:
    assert TrainConfig.from_dict({}) == TrainConfig()
    assert TrainConfig.from_dict({"seed": 3}) == TrainConfig(seed=3)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *((name, 0, "must be at least 1") for name in (
            "batch_size", "accumulation", "context_length", "log_every", "threads"
        )),
        *((name, value, "must be a positive number")
          for name in ("num_epochs", "learning_rate", "evaluate_every", "checkpoint_every")
          for value in (0.0, -1.0, math.nan, math.inf)),
        *((name, -1, "must not be negative") for name in ("crop_padding", "cutout", "seed")),
        *(("weight_decay", value, "must not be negative") for value in (-1e-4, math.nan, math.inf)),
        *((name, value, "fraction from 0 to 1")
          for name in ("warmup", "final_learning_rate") for value in (-0.1, 1.1, math.nan)),
        *((name, value, r"must lie in \[0, 1\)")
          for name in ("momentum", "beta2", "label_smoothing") for value in (-0.1, 1.0, math.nan)),
        *(("clip_norm", value, "must be positive, or none") for value in (0.0, -1.0, math.nan)),
        *((name, value, "must be positive, or none")
          for name in ("celu", "first_size", "ghost_batch", "image_size", "last_size", "whiten_bias_epochs")
          for value in (0, -1)),
        *(("crop_scale", value, "fraction above 0 and up to 1, or none") for value in (0.0, 1.5, math.nan)),
        *(("ema", value, "must lie strictly between 0 and 1, or be none") for value in (0.0, 1.0, math.nan)),
        ("seed", 2**63, "must be below 2"),
        ("flip", "up", "must be one of 'none', 'random', 'alternating'"),
        ("optimizer", "adam", "must be one of 'sgd', 'adamw', 'muon'"),
        ("decay", "exponential", "must be one of"),
        ("precision", "float16", "must be one of 'auto', 'float32', 'bfloat16'"),
        # types, as they may come from JSON or user code
        ("batch_size", "64", "must be an integer"), ("batch_size", 64.0, "must be an integer"),
        ("batch_size", True, "must be an integer"), ("num_epochs", "3", "must be a number"),
        ("num_epochs", False, "must be a number"), ("num_epochs", None, "must be a number"),
        ("deterministic", 1, "must be true or false"), ("tensorboard", "yes", "must be true or false"),
        ("data", 3, "must be a text"), ("wandb", True, "must be a text or none"),
        ("threads", 1.5, "must be an integer or none"), ("threads", True, "must be an integer or none"),
        ("clip_norm", "1", "must be a number or none"), ("flip", None, "must be one of"),
        ("model_args", [1], "a mapping of names"), ("model_args", {"w": [1]}, "a mapping of names"),
        ("model_args", {1: 1}, "a mapping of names"), ("model_args", {"w": None}, "a mapping of names"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(name: str, value: Any, rule: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{name} is .*: it (is a )?.*{rule}.*\(--{name.replace('_', '-')}\)$"
    ) as told:
        TrainConfig(**{name: value})
    assert repr(value) in str(told.value)
    with pytest.raises(ValueError, match=name):
        TrainConfig().replace(**{name: value})


def test_the_borders_are_allowed() -> None:
    TrainConfig(warmup=0, final_learning_rate=1, momentum=0, label_smoothing=0, weight_decay=0, seed=2**63 - 1)
    TrainConfig(warmup=1.0, num_epochs=1e-6, batch_size=1, threads=1, clip_norm=1e-9)


def test_more_parts_than_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"accumulation is 5, but a batch has only 4 samples.*--accumulation"):
        TrainConfig(batch_size=4, accumulation=5)
    assert TrainConfig(batch_size=4, accumulation=4).accumulation == 4


def test_a_schedule_longer_than_training_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup is 0.75 and cooldown 0.5: .*lower --warmup or --cooldown"):
        TrainConfig(warmup=0.75, cooldown=0.5)


def test_ghost_batches_larger_than_what_the_model_sees_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ghost_batch is 9, but only 8 samples .*lower --ghost-batch or raise"):
        TrainConfig(ghost_batch=9, batch_size=32, accumulation=4)
    assert TrainConfig(ghost_batch=8, batch_size=32, accumulation=4).ghost_batch == 8


def test_where_sizes_end_needs_where_they_begin() -> None:
    with pytest.raises(ConfigError, match=r"--last-size .* give --first-size"):
        TrainConfig(last_size=8)


def test_integers_stand_for_floats() -> None:
    config = TrainConfig(num_epochs=3, learning_rate=1, clip_norm=2)
    assert isinstance(config.num_epochs, float)
    assert config == TrainConfig(num_epochs=3.0, learning_rate=1.0, clip_norm=2.0)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1  # type: ignore[misc]


def test_defaults_are_not_shared() -> None:
    TrainConfig().model_args["width"] = 1
    assert TrainConfig().model_args == {}


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("epochs", "num_epochs"), ("learningrate", "learning_rate"), ("batchsize", "batch_size")]
)
def test_unknown_names_get_the_nearest(wrong: str, nearest: str) -> None:
    for refuse in (TrainConfig().replace, lambda **values: TrainConfig.from_dict(values)):
        with pytest.raises(ConfigError, match=f"no setting is called '{wrong}'; did you mean '{nearest}'"):
            refuse(**{wrong: 1})


def test_unknown_names_that_are_like_none_get_the_list() -> None:
    with pytest.raises(ConfigError, match=r"no setting is called 'qqq'; known are recipe, data, .*"):
        TrainConfig().replace(qqq=1)


@pytest.mark.parametrize("name", OTHERS)
def test_differences_are_those_that_change_the_result(name: str) -> None:
    config = TrainConfig()
    config = TrainConfig(first_size=8) if name == "last_size" else config  # which does not go alone
    other = config.replace(**{name: OTHERS[name]})
    expected = [] if name in FREE_ON_RESUME else [f"{name}: {getattr(config, name)!r} != {OTHERS[name]!r}"]
    assert config.differences(other) == expected
    assert config.differences(config) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width=64", ("width", 64)), ("dropout=0.1", ("dropout", 0.1)), ("lr=1e-3", ("lr", 0.001)),
        ("tied=true", ("tied", True)), ("tied=false", ("tied", False)), ("kind=pre-norm", ("kind", "pre-norm")),
        ("path=a=b", ("path", "a=b")), ("empty=", ("empty", "")), ("what=null", ("what", "null")),
        ("list=[1]", ("list", "[1]")), ("five=\"5\"", ("five", "5")), ("yes=True", ("yes", "True")),
    ],
)  # fmt: skip
def test_model_arguments(text: str, expected: tuple[str, Any]) -> None:
    name, value = parse_model_arg(text)
    assert (name, value) == expected
    assert type(value) is type(expected[1])


@pytest.mark.parametrize("text", ["width", "", "=3", "2x=3", "a b=1", "a-b=1"])
def test_model_arguments_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="takes NAME=VALUE, for example width=64; it was given"):
        parse_model_arg(text)


@given(value=st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans(), st.text()))
def test_model_arguments_survive_being_written(value: float | bool | str) -> None:
    name, back = parse_model_arg(f"x={json.dumps(value)}")
    assert (name, back, type(back)) == ("x", value, type(value))
