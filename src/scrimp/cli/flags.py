"""Command-line flags made from the fields of ``TrainConfig``, so that a new setting is a flag at once."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from scrimp._core.names import nearest
from scrimp.cli.main import Parser
from scrimp.errors import ConfigError
from scrimp.train.config import TrainConfig, parse_model_arg
from scrimp.train.variants import without_rivals


def add_config_flags(parser: argparse.ArgumentParser, defaults: TrainConfig) -> None:
    """Add one flag per field, in groups; the help shows the values of ``defaults``, but only given flags are parsed."""
    groups: dict[str, Any] = {}
    types = get_type_hints(TrainConfig)
    for setting in dataclasses.fields(TrainConfig):
        if not setting.metadata.get("flag", True):
            continue
        title = setting.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        options = _options(types[setting.name], setting.metadata.get("parse"))
        default = _shown(getattr(defaults, setting.name))
        help_text = f"{setting.metadata['help']} (default: {default})".replace("%", "%%")
        names = [f"--{setting.name.replace('_', '-')}", *filter(None, [setting.metadata.get("short")])]
        groups[title].add_argument(
            *names,
            dest=setting.name,
            default=argparse.SUPPRESS,
            help=help_text,
            **options,
        )


def apply_flags(namespace: argparse.Namespace, base: TrainConfig) -> TrainConfig:
    """``base`` with the settings that were given on the command line.

    Another model starts without those settings of ``base`` that belong to its model (arguments, whitening and the
    like); for the same model, arguments are added to those of ``base``. What contradicts a given setting is dropped.
    """
    given = given_flags(namespace)
    base = without_rivals(base.with_model(given.get("model", base.model)), given)
    if "model_args" in given:
        given["model_args"] = {**base.model_args, **dict(map(parse_model_arg, given["model_args"]))}
    return base.replace(**given)


def given_flags(namespace: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given on the command line, as they were parsed."""
    names = [f.name for f in dataclasses.fields(TrainConfig) if f.metadata.get("flag", True)]
    return {name: getattr(namespace, name) for name in names if hasattr(namespace, name)}


def parse(parser: Parser, words: list[str]) -> argparse.Namespace:
    """Parse all of ``words``. Raises ConfigError; an unknown flag gets the nearest known one."""
    namespace, unknown = parser.parse_known_args(words)
    for word in unknown:
        known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        if word.startswith("-"):
            hint = nearest(word.split("=")[0], known) if word.startswith("--") else ""
            hint = hint if "did you mean" in hint else f"; see {parser.prog} --help"
            raise ConfigError(f"no flag is called {word!r}{hint}")
        raise ConfigError(f"{word!r} is one word too many (see {parser.prog} --help)")
    return namespace


def _options(expected: Any, parse: Callable[[str], Any] | None = None) -> dict[str, Any]:
    origin = get_origin(expected)
    if origin is Literal:
        return {"choices": list(get_args(expected)), "metavar": "|".join(get_args(expected))}
    if origin is dict:
        return {"action": "extend", "nargs": "+", "metavar": "NAME=VALUE"}
    if origin is not None:  # X | None
        (inner,) = (option for option in get_args(expected) if option is not type(None))
        return {"type": _or_none(_saying_why(parse) if parse else inner, inner.__name__), "metavar": _METAVARS[inner]}
    if expected is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": expected, "metavar": _METAVARS[expected]}


_METAVARS = {int: "N", float: "X", str: "TEXT"}


def _or_none(inner: Callable[[str], Any], name: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        return None if text.lower() == "none" else inner(text)

    convert.__name__ = f"{name} or none"  # argparse puts it into its message
    return convert


def _saying_why(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """``parse``, whose own words about a wrong value are shown; of a ValueError argparse shows none."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={item}" for name, item in value.items()) or "the model's own"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
