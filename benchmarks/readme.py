"""Writes what the README shows of ``scrimp compare digits``: its table, how long it took, and the picture of its page.

The comparison is made anew by ``compare.py``, which takes minutes of a machine that has nothing else to do. The picture
needs a Chromium.

    python benchmarks/readme.py
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compare import short_table
from environment import RESULTS, ROOT, child_environment
from PIL import Image

README, PICTURE = ROOT / "README.md", ROOT / "docs" / "comparison.png"
SIZE = (1120, 1440)  # of the picture: the figures at a glance, the table, and what the seeds say
_TABLE = re.compile(r"(<!-- table: \S+ -->\n).*?(\n<!-- end of table -->)", re.DOTALL)
_COMMAND = re.compile(r"`scrimp compare digits[^`]*`, \d+ seconds on \w+ cores?")
_NUMBERS = {1: "one core", 2: "two cores", 4: "four cores", 8: "eight cores"}


def with_result(readme: str, result: Mapping[str, Any]) -> str:
    """``readme`` with the table, command and time of a result of ``compare.py``."""
    table = "\n".join(short_table(result["comparison"]))
    num_cores = result["hardware"]["num_cores"]
    cores = _NUMBERS.get(num_cores, f"{num_cores} cores")
    command = f"`{result['comparison']['command']}`, {result['command_seconds']:.0f} seconds on {cores}"
    readme, num_tables = _TABLE.subn(lambda found: found[1] + table + found[2], readme)
    readme, num_commands = _COMMAND.subn(lambda _: command, readme)
    assert num_tables == num_commands == 1, "the README has lost the places of its table or its command"
    return readme


def take_picture(page: Path, picture: Path) -> None:
    """The upper part of ``page`` in a browser's light colours, as a small PNG."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((path for path in map(shutil.which, names) if path), None)
    if browser is None:
        raise SystemExit("the picture needs a browser: install chromium, or give --no-picture")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "page.png"
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={raw}",
                f"--user-data-dir={folder}/profile", f"--window-size={SIZE[0]},{SIZE[1]}", page.resolve().as_uri(),
            ],
            capture_output=True, check=True, timeout=120,
        )  # fmt: skip
        Image.open(raw).convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE).save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="The README's table and picture.")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--runs", type=Path, help="keep the runs here (default: nowhere)")
    parser.add_argument("--no-picture", action="store_true")
    options = parser.parse_args()
    out = RESULTS / "compare_digits.json"
    with tempfile.TemporaryDirectory() as folder:
        runs = options.runs or Path(folder) / "runs"
        words = ["--seeds", str(options.seeds), "--runs", str(runs), "--out", str(out)]
        script = Path(__file__).with_name("compare.py")
        subprocess.run([sys.executable, str(script), *words], env=child_environment(), check=True)
        if not options.no_picture:
            take_picture(runs / "report.html", PICTURE)
    README.write_text(with_result(README.read_text(), json.loads(out.read_text())))
    print(f"written: {README.name} and {PICTURE.relative_to(ROOT)}; read what the README says about them once more")


if __name__ == "__main__":
    main()
