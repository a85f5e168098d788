"""The recipes: each is whole, and its model fits the data that it is for."""

from itertools import pairwise

import pytest

from scrimp.errors import ConfigError
from scrimp.train.models import ModelFacts, build_model
from scrimp.train.optimization import learning_rate_factor
from scrimp.train.page_ladder import LADDER, page_rung, rung_of
from scrimp.train.recipes import RECIPES, find_recipe

FACTS = {
    "digits": ModelFacts(num_classes=10, in_channels=1, image_size=8),
    "fashion-mnist": ModelFacts(num_classes=10, in_channels=1, image_size=28),
    "cifar10-small": ModelFacts(num_classes=10, in_channels=3, image_size=32),
    **dict.fromkeys(
        ("cifar10", "cifar10-sgd", "cifar10-page", "cifar10-96"),
        ModelFacts(num_classes=10, in_channels=3, image_size=32),
    ),
    "imagenet": ModelFacts(num_classes=1000, in_channels=3, image_size=64),
    "text": ModelFacts(vocab_size=65, context_length=128),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_knows_its_name_and_is_made_anew(name: str) -> None:
    config = find_recipe(name)
    assert config.recipe == name
    assert config == RECIPES[name]()
    assert config.model_args is not RECIPES[name]().model_args
    assert RECIPES[name].__doc__, "the command line shows its first sentence"


@pytest.mark.parametrize("name", RECIPES)
def test_its_model_can_be_built(name: str) -> None:
    config = find_recipe(name)
    model = build_model(config.model, config.model_args, FACTS[name])
    num_parameters = sum(p.numel() for p in model.parameters())
    assert 50_000 < num_parameters < (30_000_000 if name.startswith(("cifar10-", "imagenet")) else 2_500_000)


def test_digits_needs_nothing() -> None:
    assert find_recipe("digits").data == "digits"


def test_unknown_recipes_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no recipe is called 'cifar10-smal'; did you mean 'cifar10-small'"):
        find_recipe("cifar10-smal")
    with pytest.raises(ConfigError, match="no recipe is called 'zzz'; known are digits, fashion-mnist"):
        find_recipe("zzz")


def test_a_recipe_is_changed_by_replacing() -> None:
    assert find_recipe("digits").replace(num_epochs=2).num_epochs == 2.0
    assert find_recipe("digits").num_epochs != 2.0


def test_the_settings_of_airbench() -> None:
    """In the units of its source: per 1024 samples, with the sum of the losses."""
    config = find_recipe("cifar10-sgd")
    kilostep = 1024 * (1 + 1 / (1 - 0.85))
    assert config.learning_rate == pytest.approx(1024 * 11.5 / kilostep)
    assert config.learning_rate * config.weight_decay == pytest.approx(0.0153 * 1024 / kilostep)
    muon = find_recipe("cifar10")
    assert muon.learning_rate * 64 / 500 == pytest.approx(0.053, rel=0.01)  # of biases
    assert muon.learning_rate / 9**2 == pytest.approx(0.67 * 500 / 256**2, rel=0.01)  # of the head's function
    assert muon.learning_rate * muon.weight_decay == pytest.approx(2e-6 * 500, rel=0.01)


# the ladder


def test_each_rung_changes_what_its_name_says() -> None:
    rungs = [page_rung(number) for number in range(len(LADDER))]
    assert rungs[-1] == page_rung() == find_recipe("cifar10-page") == find_recipe("cifar10-page", len(LADDER) - 1)
    for number, (before, after) in enumerate(pairwise(rungs), 1):
        changed = {line.partition(":")[0] for line in before.differences(after)}
        free = {"num_epochs", "warmup"}
        assert changed <= set(LADDER[number].changes) | free
        assert changed - free, LADDER[number].name
    assert [config.num_epochs for config in rungs] == [24, 24, 25, 23, 20, 18, 17, 15, 14, 13, 10]
    seconds = [rung.published_seconds for rung in LADDER]
    assert seconds == sorted(seconds, reverse=True)
    assert (seconds[0], seconds[-1]) == (75, 26)


def test_the_last_rate_of_the_ladder() -> None:
    """Knots 0, E/5, E - 2 with values 0, 1, 0.1, which then stays."""
    config = page_rung()
    factors = [learning_rate_factor(config, epoch / 10) for epoch in (0, 1, 2, 5, 8, 9, 10)]
    assert factors == pytest.approx([0, 0.5, 1, 0.55, 0.1, 0.1, 0.1])


def test_a_recipe_does_not_share_the_ladders_settings() -> None:
    page_rung(0).model_args["width"] = 1
    assert page_rung(0).model_args == {"width": 64}


@pytest.mark.parametrize("number", [-1, 11])
def test_rungs_that_are_not_there(number: int) -> None:
    with pytest.raises(ConfigError, match=rf"rung is {number}: the ladder has the rungs 0 \(baseline\) to 10"):
        find_recipe("cifar10-page", number)


def test_a_run_knows_its_rung_whatever_its_length() -> None:
    for number in range(len(LADDER)):
        shorter = page_rung(number).replace(num_epochs=2, model_args={"width": 8}, learning_rate=0.2, seed=3)
        assert rung_of(shorter) == number
    assert rung_of(page_rung(3).replace(label_smoothing=0.1)) is None
    assert rung_of(find_recipe("fashion-mnist")) is None


def test_other_recipes_have_no_rungs() -> None:
    with pytest.raises(ConfigError, match="the recipe text has no rungs; --rung is for cifar10-page"):
        find_recipe("text", 1)
