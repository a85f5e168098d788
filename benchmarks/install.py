"""Claim: the README's first command takes a few minutes and little disk from a fresh clone to a trained model.

The lines of the README's block run one after another in a clone of this commit, with a virtual environment of their own
and nothing in pip's cache; each is timed, and the environment is weighed, its largest packages apart. How long packages
take to arrive is the network's affair; where pip finds them on a disk, the seconds are those of unpacking them. Which
torch comes (``torch`` in the result) decides nearly all: on Linux the one with CUDA, unless pip is told otherwise.

    python benchmarks/install.py
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import RESULTS, ROOT, facts, write_result

_LARGEST = 8
_BLOCK = re.compile(r"<!-- run command -->\n```\n(.*?)```", re.DOTALL)


def lines_of(readme: str) -> list[str]:
    """The lines of the README's first command."""
    match = _BLOCK.search(readme)
    assert match is not None, "the README has no block behind <!-- run command -->"
    return match[1].splitlines()


def timed(lines: list[str], folder: Path) -> list[dict[str, Any]]:
    """Run ``lines`` as one shell does, in ``folder``; the seconds of each."""
    marked = [f"{line}\necho seconds: $(date +%s.%N)" for line in lines]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    started = time.time()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(marked)], cwd=folder, capture_output=True, text=True, check=False,
        env={**clean, "PIP_NO_CACHE_DIR": "1", "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the README's command failed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    ends = [started, *(float(text) for text in re.findall(r"^seconds: (\S+)$", done.stdout, re.MULTILINE))]
    return [
        {"line": line, "seconds": round(after - before, 1)}
        for line, before, after in zip(lines, ends, ends[1:], strict=False)
    ]


def bytes_in(folder: Path) -> int:
    """What a folder takes on the disk, linked files once."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[status.st_ino] = 512 * status.st_blocks
    return sum(found.values())


def packages_in(environment: Path) -> list[dict[str, Any]]:
    """Name, version and bytes of what pip installed, from its own list; the largest first."""
    program = (
        "import importlib.metadata as m, json, os\n"
        "size = lambda p: os.lstat(p).st_size if os.path.lexists(p) else 0\n"
        "print(json.dumps([[d.name, d.version, sum(size(d.locate_file(f)) for f in d.files or ())]"
        " for d in m.distributions()]))"
    )
    done = subprocess.run(
        [environment / "bin" / "python", "-I", "-c", program], capture_output=True, text=True, check=True
    )
    found = [dict(zip(("name", "version", "bytes"), one, strict=True)) for one in json.loads(done.stdout)]
    return sorted(found, key=lambda one: -one["bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and size of the README's first command.")
    parser.add_argument("--out", type=Path, default=RESULTS / "install.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "scrimp"
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, clone], check=True)
        lines = timed(lines_of((clone / "README.md").read_text()), clone)
        packages = packages_in(clone / ".venv")
        on_disk = bytes_in(clone / ".venv")
        clone_bytes = bytes_in(clone) - on_disk - bytes_in(clone / "runs") - bytes_in(clone / "cache")
    torch = next(one["version"] for one in packages if one["name"] == "torch")
    result = {
        **facts(), "torch": torch, "lines": lines, "seconds": round(sum(one["seconds"] for one in lines), 1),
        "num_packages": len(packages), "environment_bytes": on_disk, "clone_bytes": clone_bytes,
        "largest": packages[:_LARGEST],
    }  # fmt: skip
    for one in lines:
        print(f"{one['seconds']:7.1f} s  {one['line']}")
    print(f"{on_disk / 1e6:,.0f} MB in {len(packages)} packages, with torch {torch}")
    write_result(options.out, result)


if __name__ == "__main__":
    main()
