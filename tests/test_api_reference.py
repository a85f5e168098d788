"""The API reference: made from the docstrings, with every public name."""

import runpy
from pathlib import Path

import pytest
from tests.test_public_api import ERRORS, NAMES

MADE = runpy.run_path(str(Path(__file__).resolve().parent.parent / "docs" / "make_api.py"))


@pytest.fixture(scope="module")
def pages():
    return MADE["pages"]()


@pytest.mark.parametrize("module_name", [*NAMES, "scrimp.errors"])
def test_every_public_name_has_an_entry_with_words(pages, module_name):
    page = pages[f"{module_name}.md"]
    for name in NAMES.get(module_name, ERRORS):
        _, found, rest = page.partition(f"\n## {name}\n")
        assert found, name
        entry = rest.partition("\n## ")[0]
        words = entry.partition("```\n\n")[2] or entry
        assert len(words.split()) >= 3, f"{name} is not explained"


def test_nothing_of_this_machine_is_in_it(pages):
    text = "".join(pages.values())
    assert " at 0x" not in text
    assert str(Path.home()) not in text


def test_the_index_leads_to_each_page(pages):
    assert all(f"]({name})" in pages["README.md"] for name in pages if name != "README.md")
