"""The recipes: each is whole, and its model fits the data that it is for."""

import pytest

from scrimp.errors import ConfigError
from scrimp.train.models import ModelFacts, build_model
from scrimp.train.recipes import RECIPES, find_recipe

FACTS = {
    "digits": ModelFacts(num_classes=10, in_channels=1, image_size=8),
    "fashion-mnist": ModelFacts(num_classes=10, in_channels=1, image_size=28),
    "cifar10-small": ModelFacts(num_classes=10, in_channels=3, image_size=32),
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
    assert 50_000 < num_parameters < 1_500_000


def test_digits_needs_nothing() -> None:
    assert find_recipe("digits").data == "digits"


def test_unknown_recipes_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no recipe is called 'cifar10'; did you mean 'cifar10-small'"):
        find_recipe("cifar10")
    with pytest.raises(ConfigError, match="no recipe is called 'zzz'; known are digits, fashion-mnist"):
        find_recipe("zzz")


def test_a_recipe_is_changed_by_replacing() -> None:
    assert find_recipe("digits").replace(num_epochs=2).num_epochs == 2.0
    assert find_recipe("digits").num_epochs != 2.0
