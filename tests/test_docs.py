"""What the documentation says is tried: code runs, commands parse, links lead somewhere."""

import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import scrimp
from scrimp.cli.checkpoints import _COMMANDS
from scrimp.cli.compare import _parser as _compare_parser
from scrimp.cli.flags import apply_flags, parse
from scrimp.cli.main import main
from scrimp.cli.train import _parser
from scrimp.errors import ConfigError
from scrimp.train.comparison import default_variants, plan_variants
from scrimp.train.config import TrainConfig
from scrimp.train.recipes import find_recipe
from scrimp.train.variants import parse_savings, with_savings

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """The fenced blocks of one language, with the line where each begins."""
    text = page.read_text()
    return [(text[: m.start()].count("\n") + 2, m[2]) for m in BLOCK.finditer(text) if m[1] == language]


def programs(page):
    """The Python blocks of a page with their lines; those of a tutorial go on from one to the next, as one program."""
    found = blocks(page, "python")
    if page.name != "tutorial.md":
        return found
    program = ""
    for line, code in found:
        program += "\n" * (line - 1 - program.count("\n")) + code  # so that a traceback names the line of the page
    return [(1, program)]


def examples():
    """Every Python program of every page."""
    return [pytest.param(page, line, code, id=f"{page.name}:{line}") for page in PAGES for line, code in programs(page)]


def commands(page):
    """The ``scrimp ...`` command lines of a page, in blocks and between backticks, as lists of words."""
    text = page.read_text()
    lines = [line for _, block in [*blocks(page, ""), *blocks(page, "bash")] for line in block.splitlines()]
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", BLOCK.sub("", text))
    found = []
    for line in lines:
        match = re.match(r"(?:torchrun .*-m )?scrimp (.*)", line.strip())
        if match:
            found.append(shlex.split(match[1], comments=True))
    return found


@pytest.mark.parametrize(("page", "line", "code"), examples())
def test_python_block_runs(page, line, code, tmp_path, monkeypatch):
    script = tmp_path / "block.py"
    script.write_text("\n" * (line - 1) + code)  # so that a traceback names the line of the page
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    runpy.run_path(str(script), run_name="__main__")


def check_command(words):
    """Raise ConfigError unless ``scrimp WORDS`` would be accepted; nothing is run."""
    command, rest = words[0], words[1:]
    if command == "train":
        namespace = parse(_parser(TrainConfig()), rest)
        recipe = find_recipe(namespace.recipe or "digits")
        if namespace.savings is not None:
            recipe = with_savings(recipe, parse_savings(namespace.savings, recipe.recipe))
        apply_flags(namespace, recipe)
    elif command == "compare":
        namespace = parse(_compare_parser(TrainConfig()), rest)
        recipe = namespace.recipe or "digits"
        plan_variants(
            recipe, namespace.variants or default_variants(recipe), lambda config: apply_flags(namespace, config)
        )
    elif command == "report":
        if not rest:
            raise ConfigError("scrimp report needs a run")
    elif command in ("pack", "unpack", "export", "inspect"):
        flags = {"pack": ["--bits", "--out"], "unpack": ["--out"], "export": ["--format", "--out"], "inspect": []}
        pairs = rest[1:]
        if len(pairs) % 2 or not set(pairs[::2]) <= set(flags[command]):
            raise ConfigError(f"scrimp {command} takes one file or run, and {flags[command]}")
    elif command == "checkpoints":
        if not rest or rest[0] not in _COMMANDS:
            raise ConfigError(f"unknown command checkpoints {rest}")
    else:
        raise ConfigError(f"unknown command {command}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_accepted(page):
    for words in commands(page):
        # placeholders stand for any recipe or any run
        if "COMMAND" not in words:
            check_command([{"RECIPE": "digits", "[RECIPE]": "digits"}.get(word, word) for word in words])


def test_readme_has_commands_and_code():
    """The extraction finds what is there."""
    found = commands(README)
    assert ["train"] in found
    assert ["train", "fashion-mnist", "--data", "~/data/fashion-mnist", "--num-epochs", "3", "--seed", "1"] in found
    assert ["train", "digits", "--batch-size", "32"] in found  # behind torchrun
    assert len(examples()) >= 2


@pytest.mark.parametrize(
    "line",
    [
        "train mnist",
        "train --epochs 3",
        "train digits extra",
        "train --batch-size 0",
        "trian",
        "report",
        "train --seed x",
        "train digits --savings bit",
        "compare digits --variants plane",
        "compare text --variants step",
        "export runs/x --fromat onnx",
    ],
)
def test_a_wrong_command_is_found(line):
    with pytest.raises(ConfigError):
        check_command(shlex.split(line))


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"],
    ids=lambda page: page.name,
)  # fmt: skip
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_changelog_and_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert changelog.startswith("# Changelog")
    assert "## Unreleased" in changelog
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == scrimp.__version__


def test_version_is_shown(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"scrimp {scrimp.__version__}\n"


def marked_block(name):
    """The commands of the block behind ``<!-- NAME command -->``."""
    match = re.search(rf"<!-- {name} command -->\n```\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


@pytest.mark.parametrize("name", ["run", "test"])
def test_ci_runs_the_readme_commands(name):
    """What ``.ci/run`` cuts out of the README is the block that people read there, whole and nothing else."""
    script = (ROOT / ".ci" / "run").read_text()
    function = re.search(r"^readme_command\(\) \{.*?^\}", script, re.MULTILINE | re.DOTALL)
    assert function is not None
    assert f'"{name} command"' in script
    program = f'{function[0]}\nreadme_command "{name} command"'
    done = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == marked_block(name)


@pytest.mark.parametrize("name", ["run", "test"])
def test_the_two_commands_stand_alone(name):
    """Each makes its own virtual environment and installs what it needs, from a fresh clone."""
    first, second, third = marked_block(name).splitlines()
    assert first == "python3 -m venv .venv && . .venv/bin/activate"
    assert second.startswith("pip install -c constraints.txt -e ")
    assert re.search(r"\bscrimp train$|\bpytest\b", third)


def test_the_table_of_the_readme_is_that_of_the_result(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    compare = runpy.run_path(str(ROOT / "benchmarks" / "compare.py"))
    match = re.search(r"<!-- table: (\S+) -->\n(.*?)\n<!-- end of table -->", README.read_text(), re.DOTALL)
    assert match is not None
    result = json.loads((ROOT / match[1]).read_text())["comparison"]
    assert match[2].splitlines() == compare["short_table"](result)
    assert f"`{result['command']}`" in README.read_text().replace("\n", " ")


def test_the_method_cards_say_what_was_measured(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    texts = runpy.run_path(str(ROOT / "docs" / "make_measured.py"))["cards"]()
    for path, text in texts.items():  # numbers, wherever lines are broken
        assert path.read_text().split() == text.split(), f"{path.name}: run docs/make_measured.py"
