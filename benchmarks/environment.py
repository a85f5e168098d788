"""What a result has to carry so that others can judge it: hardware, versions, command, spread."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles, stdev
from typing import Any

from scrimp.report import statistics

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, standard deviation, and the half-width of the mean's 95 % interval; neither for a single value."""
    found = statistics.interval(values)
    std = stdev(values) if len(values) > 1 else None
    return {"mean": found.mean, "std": std, "half_width": found.half_width, "n": found.num}


# One-sided 80 % quantiles of Student's t for 1 to 9 degrees of freedom.
_STUDENT_80 = (1.38, 1.06, 0.98, 0.94, 0.92, 0.91, 0.90, 0.89, 0.88)


def detectable(differences: Sequence[float]) -> float | None:
    """The true difference that a test of as many paired ones, with 5 % error, finds four times in five; about."""
    found = interval(differences)["half_width"]
    if found is None:
        return None
    degrees = len(differences) - 1
    power = _STUDENT_80[degrees - 1] if degrees <= len(_STUDENT_80) else 0.86
    return found + power * stdev(differences) / len(differences) ** 0.5


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The runs in a JSON-lines file, if there is one."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median, quartiles and range of some measurements."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    rounded = {"median": median(values), "quartile_1": low, "quartile_3": high, "min": min(values), "max": max(values)}
    return {"n": len(values), **{name: float(f"{value:.6g}") for name, value in rounded.items()}}


def interleaved_cpu_seconds(steps: Mapping[str, Callable[[], None]], num_rounds: int) -> dict[str, list[float]]:
    """Processor seconds of every step in each round, all steps in turn; two rounds more come first and do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-2, num_rounds):
        for name, step in steps.items():
            started = time.process_time()
            step()
            if number >= 0:
                seconds[name].append(time.process_time() - started)
    return seconds


def ratios_to_plain(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float | int]]:
    """The spread of each variant's ratio to ``plain``, round by round."""
    return {
        name: spread([one / plain for one, plain in zip(values, seconds["plain"], strict=True)])
        for name, values in seconds.items()
        if name != "plain"
    }


def write_step_ratios(
    path: Path, seconds: Mapping[str, Sequence[float]], settings: Mapping[str, Any], **more: Any
) -> None:
    """Show and write what ``interleaved_cpu_seconds`` measured of steps on one thread, as ratios to ``plain``.

    ``more`` is written as it is.
    """
    ratios = ratios_to_plain(seconds)
    for name, ratio in ratios.items():
        print(f"{name:28} {ratio['median']:.3f} ({ratio['quartile_1']:.3f} to {ratio['quartile_3']:.3f})")
    result = {
        "plain_cpu_seconds": spread(seconds["plain"]), "ratio_to_plain": ratios, "settings": settings,
        "control": "the ratio of 'plain again' is what the same step shows by chance",
    }  # fmt: skip
    write_result(path, {**facts(threads=1), **result, **more})


def hardware() -> dict[str, Any]:
    """The processor, its cores, the memory, how busy the machine was, and the GPU if there is one."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_name(), "num_cores": os.cpu_count(), "memory_bytes": memory_bytes, "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }  # fmt: skip


def hardware_slug() -> str:
    """Hardware as part of a file name, such as ``amd-epyc-2-cores``."""
    facts = hardware()
    name = facts["gpu"] or f"{facts['cpu']} {facts['num_cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def facts(threads: int | None = None) -> dict[str, Any]:
    """Hardware, versions, commit, date, the command that was run and on how many threads (None: torch's choice)."""
    names = ("torch", "numpy", "safetensors")
    return {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {shlex.join(map(without_home, sys.argv[1:]))}".strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "threads": threads,
    }


def without_home(word: str) -> str:
    """An absolute path without what is particular to this machine: ``.../cifar10``."""
    return f".../{Path(word).name}" if word.startswith("/") else word


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write ``result`` as JSON and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path}")


def child_environment() -> dict[str, str]:
    """The environment of a subprocess that imports this checkout's scrimp."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return match[1] if match else platform.processor()


def _commit() -> str | None:
    """The commit, marked when files were changed since."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
