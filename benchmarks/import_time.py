"""Claim: ``import scrimp`` takes under 0.3 s beyond ``import torch``.

Each measurement is a fresh interpreter; ``import torch`` alone and ``import torch, scrimp`` take turns, and the time of
``import scrimp`` is taken inside the second, after torch is there. Compiled files (.pyc) exist, as they do from the
second import on; the first run of each kind does not count.

    python benchmarks/import_time.py
    python benchmarks/import_time.py --slowest 15       # and which modules take the time
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from environment import RESULTS, child_environment, facts, spread, write_result

CLAIM_SECONDS = 0.3
TORCH_ALONE = """
import json, time
started = time.perf_counter()
import torch
print(json.dumps({"torch": time.perf_counter() - started}))
"""
WITH_SCRIMP = """
import json, time
started = time.perf_counter()
import torch
between = time.perf_counter()
import scrimp
for name in scrimp.__all__:  # names are looked up when they are first used
    getattr(scrimp, name)
print(json.dumps({"torch": between - started, "scrimp": time.perf_counter() - between}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of `import scrimp` beyond `import torch`.")
    parser.add_argument("--runs", type=int, default=7, help="interpreters of each kind that count")
    parser.add_argument("--slowest", type=int, default=0, metavar="N", help="also show the N slowest modules")
    parser.add_argument("--out", type=Path, default=RESULTS / "import_time.json")
    options = parser.parse_args()
    alone, torch_seconds, scrimp_seconds = [], [], []
    for number in range(-1, options.runs):
        first, second = _python(TORCH_ALONE), _python(WITH_SCRIMP)
        if number >= 0:
            alone.append(first["torch"])
            torch_seconds.append(second["torch"])
            scrimp_seconds.append(second["scrimp"])
    beyond = spread(scrimp_seconds)
    print(f"import scrimp: {beyond['median']:.3f} s beyond torch ({spread(alone)['median']:.3f} s)")
    if options.slowest:
        for seconds, module in slowest_modules(options.slowest):
            print(f"  {seconds:.4f} s  {module}")
    result = {
        "seconds_beyond_torch": beyond, "torch_seconds": spread(torch_seconds), "torch_alone_seconds": spread(alone),
        "claim": f"seconds_beyond_torch.median < {CLAIM_SECONDS}", "holds": beyond["median"] < CLAIM_SECONDS,
    }  # fmt: skip
    write_result(options.out, {**facts(), **result})


def slowest_modules(num_modules: int) -> list[tuple[float, str]]:
    """Modules that come with scrimp and not with torch, by their own time."""
    words = [sys.executable, "-X", "importtime", "-c", "import torch; import scrimp"]
    done = subprocess.run(words, env=child_environment(), capture_output=True, text=True, check=True)
    lines = re.findall(r"^import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)$", done.stderr, re.MULTILINE)
    names = [name for _, name in lines]
    after_torch = lines[names.index("torch") + 1 :]
    return sorted(((int(own) / 1e6, name) for own, name in after_torch), reverse=True)[:num_modules]


def _python(program: str) -> dict[str, float]:
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=child_environment(), capture_output=True, text=True, check=True)
    times: dict[str, float] = json.loads(done.stdout)
    return times


if __name__ == "__main__":
    main()
