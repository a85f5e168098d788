"""Write docs/api: every public name with its signature and docstring, from the installed package.

python docs/make_api.py
"""

import argparse
import importlib
import inspect
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = (
    "scrimp", "scrimp.samples", "scrimp.steps", "scrimp.bits", "scrimp.checkpoints", "scrimp.train", "scrimp.report",
    "scrimp.testing", "scrimp.errors",
)  # fmt: skip
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def pages() -> dict[str, str]:
    """The text of each page by its file name."""
    made = {f"{name}.md": page(importlib.import_module(name)) for name in MODULES}
    lines = [
        "# API reference", "", "Made from the docstrings by `python docs/make_api.py`.", "",
        *(f"- [`{name}`]({name}.md): {_first_line(importlib.import_module(name))}" for name in MODULES),
    ]  # fmt: skip
    return {"README.md": "\n".join(lines) + "\n", **made}


def page(module: ModuleType) -> str:
    """One module: its names in alphabetical order, those of other pages as links."""
    parts = [f"# {module.__name__}", "", inspect.getdoc(module) or "", ""]
    for name in public_names(module):
        parts += entry(name, getattr(module, name))
    return "\n".join(parts).rstrip() + "\n"


def public_names(module: ModuleType) -> list[str]:
    """What the module offers; ``scrimp.errors`` has no list of its own."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return sorted(getattr(module, "__all__", own), key=str.lower)


def entry(name: str, value: Any) -> list[str]:
    """A heading, the signature and the docstring; of a class its public methods and properties as well."""
    if inspect.ismodule(value):
        return [f"## {name}", "", f"The package [`{value.__name__}`]({value.__name__}.md).", ""]
    lines = [f"## {name}", ""]
    if inspect.isclass(value) or inspect.isroutine(value):
        lines += ["```text", _signature(name, value), "```", ""]
    lines += [_prose(inspect.getdoc(value) or ""), ""] if not isinstance(value, str | dict | tuple) else []
    if isinstance(value, dict):
        lines += [f"By name: {', '.join(f'`{key}`' for key in value)}.", ""]
    if inspect.isclass(value):
        for part, member in sorted(vars(value).items()):
            plain = getattr(member, "__func__", member)
            if part.startswith("_") or not (inspect.isfunction(plain) or isinstance(member, property)):
                continue
            shown = part if isinstance(member, property) else _signature(part, plain)
            lines += ["```text", shown, "```", "", _prose(inspect.getdoc(member) or ""), ""]
    return lines


def _prose(text: str) -> str:
    """A docstring as Markdown: names between single backticks, ``Raises:`` and the like in bold."""
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    return re.sub(r"^(Args|Raises|Cost|Source|Memory|Returns|Differs):", r"\n**\1:**", text, flags=re.MULTILINE)


def _signature(name: str, value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return name
    text = _ADDRESS.sub("", text).replace("'", "")
    return "\n".join(textwrap.wrap(f"{name}{text}", 100, subsequent_indent="    ", break_long_words=False))


def _first_line(module: ModuleType) -> str:
    return (inspect.getdoc(module) or "").split("\n")[0]


def main() -> None:
    """Write all pages."""
    parser = argparse.ArgumentParser(description="Write the API reference.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "api")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (out / name).write_text(text)


if __name__ == "__main__":
    main()
