"""Claim: random combinations of options, killed at random and resumed, give the result of a run that was never stopped.

Each trial draws options for ``digits`` from a seed, trains once without a stop, and once with kills (SIGKILL) and
interruptions (SIGINT) at random moments, resumed until it ends. Then: both have the same weights and packed file bit by
bit, and the same record but for clock readings; the run directory holds no file that it should not; its store verifies.
A combination that is refused has to be refused with a sentence and leave nothing. At the end one process trains several
runs in a row, and its resident memory must not grow. Trials that are there already are not repeated.

Each run is a process of its own, forked from this one, which has imported everything: that is most of what a run takes.

    python benchmarks/soak.py --trials 100
    python benchmarks/soak.py --trials 100 --minutes 10          # and again, until all have been made
"""

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from environment import RESULTS, facts, read_runs, write_result

import scrimp.cli.train  # noqa: F401 - before the forks
from scrimp.checkpoints import CheckpointStore
from scrimp.cli import main as command

_FORKS = get_context("fork")
EXPECTED = {"config.json", "metrics.jsonl", "summary.json", "report.html", "model.safetensors", "checkpoints"}
# each with the probability that it is drawn
OPTIONS: list[tuple[float, list[list[str]]]] = [
    (0.8, [["--savings", name] for name in ("none", "all", "samples", "bits", "steps,bits", "samples,checkpoints")]),
    (0.3, [["--sample-rule", name] for name in ("mean", "quantiles", "budget", "random")]),
    (0.3, [["--gamma", "0.5"], ["--target-bytes", "3000"], ["--no-compress"]]),
    (0.2, [["--quantizer", "bits-exponent"], ["--quantizer", "step-range"]]),
    (0.4, [["--optimizer", "adamw", "--learning-rate", "0.01"], ["--optimizer", "muon"]]),
    (0.3, [["--lookahead"], ["--ema", "0.9"]]),
    (0.3, [["--ghost-batch", "16"], ["--no-freeze-bn-scale", "--bias-scale", "1"], ["--celu", "0.3"]]),
    (0.3, [["--pool-early", "no"], ["--pool-early", "activation"]]),
    (0.3, [["--whiten"], ["--whiten", "--whiten-bias-epochs", "2"], ["--no-whiten"]]),
    (0.3, [["--first-size", "4"]]),
    (0.4, [["--checkpoint-codec", name] for name in ("residual", "residual-small", "excp", "lossless")]),
    (0.3, [["--checkpoint-async"]]),
    (0.3, [["--keep-checkpoints", "2"]]),
    (0.2, [["--accumulation", "2"]]),
    (0.2, [["--clip-norm", "1.0"]]),
    (0.2, [["--views", "flip"]]),
]
MOST_STOPS = 3


def draw_words(chance: random.Random) -> list[str]:
    words = ["train", "digits", "--num-epochs", chance.choice(["3", "4.5", "6"]), "--seed", str(chance.randrange(99))]
    words += ["--model-args", "width=8", "--checkpoint-every", chance.choice(["0.3", "0.9", "1"]), "--log-every", "10"]
    for probability, choices in OPTIONS:
        if chance.random() < probability:
            words += chance.choice(choices)
    return words


def trial(number: int, folder: Path) -> dict[str, Any]:
    """One combination; ``problems`` has a sentence for each thing that is wrong."""
    chance = random.Random(number)
    words = draw_words(chance)
    whole, parts = folder / "whole", folder / "parts"
    started = time.monotonic()
    first = run_to_end([*words, "--out", str(whole)], folder / "log")
    told: dict[str, Any] = {"trial": number, "words": words, "problems": []}
    if first.returncode == 2:
        told["refused"] = first.stderr.strip()
        if "Traceback" in first.stderr or whole.exists() or first.stderr.count("\n") != 1:
            told["problems"].append(f"refused badly: {first.stderr.strip()[-300:]}")
        return told
    if first.returncode != 0:
        told["problems"].append(f"exit code {first.returncode}: {first.stderr.strip()[-300:]}")
        return told
    num_seconds = time.monotonic() - started
    told["stops"] = stops = stop_at_random([*words, "--out", str(parts)], parts, num_seconds, chance)
    told["resumed"] = any(line["event"] == "note" for line in lines(parts)) or "SIGKILL" in str(stops)
    told["problems"] += differences(whole, parts)
    return told


def stop_at_random(words: list[str], out: Path, num_seconds: float, chance: random.Random) -> list[str]:
    """Train in ``out`` with up to three stops, to the end; what happened at each."""
    stops = []
    for _ in range(chance.randint(1, MOST_STOPS)):
        resume = ["train", "--resume", "--out", str(out)] if (out / "config.json").exists() else words
        process = _FORKS.Process(target=command_line, args=(resume, out.with_name("log")))
        process.start()
        kind = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT])
        process.join(chance.uniform(0.1, 1.0) * num_seconds)
        if process.exitcode is None:
            os.kill(process.pid, kind)
            stops.append(signal.Signals(kind).name)
        process.join()
    resume = ["train", "--resume", "--out", str(out)] if (out / "config.json").exists() else words
    last = run_to_end(resume, out.with_name("log"))
    if last.returncode:
        stops.append(f"resumption failed with {last.returncode}: {last.stderr.strip()[-300:]}")
    return stops


def differences(whole: Path, parts: Path) -> list[str]:
    """What is wrong with the run that was stopped."""
    found = []
    if not (parts / "summary.json").exists():
        return ["the stopped run never finished"]
    ours, theirs = (safetensors.torch.load_file(run / "model.safetensors") for run in (whole, parts))
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        found.append("the weights differ")
    if (whole / "model.scrimp").exists() and (whole / "model.scrimp").read_bytes() != (
        parts / "model.scrimp"
    ).read_bytes():
        found.append("the packed files differ")
    if lines(whole) != lines(parts):
        found.append("the records differ")
    allowed = EXPECTED | ({"model.scrimp"} if (whole / "model.scrimp").exists() else set())
    if extra := {path.name for path in parts.iterdir()} - allowed:
        found.append(f"orphaned files: {sorted(extra)}")
    stores = [CheckpointStore(run / "checkpoints") for run in (whole, parts)]
    if stores[0].steps()[-1] != stores[1].steps()[-1]:
        found.append("the stores end at different steps")
    stores[1].verify()
    if freed := stores[1].collect_garbage():
        found.append(f"the store had garbage: {freed}")
    return found


def lines(run: Path) -> list[dict[str, Any]]:
    """The lines of a record without clock readings, sizes and notes."""
    times = ("seconds", "examples_per_second")
    sizes = ("stored_bytes", "history_bytes", "exact_bytes", "by_role", "raw_bytes", "is_keyframe")
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # an interruption saves a checkpoint of its own
    kept = [line for line in read if line["event"] not in ("note", "checkpoint")]
    return [{k: v for k, v in line.items() if not k.endswith(times) and k not in sizes} for line in kept]


def memory_growth(num_runs: int, folder: Path) -> list[float]:
    """Resident megabytes after each of several runs in this process."""
    from scrimp.train.recipes import digits
    from scrimp.train.run import run

    seen = []
    for number in range(num_runs):
        run(digits().replace(num_epochs=4, model_args={"width": 8}), out=folder / f"memory-{number}")
        gc.collect()
        seen.append(round(resident_bytes() / 1e6, 1))
    return seen


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Ended:
    """A command that has ended, and what it wrote to standard error."""

    returncode: int
    stderr: str


def command_line(words: list[str], log: Path) -> None:
    """What a forked process does: ``scrimp WORDS``, with its errors in ``log``."""
    for descriptor, path in ((1, os.devnull), (2, log)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
    sys.exit(command(words))


def run_to_end(words: list[str], log: Path) -> Ended:
    process = _FORKS.Process(target=command_line, args=(words, log))
    process.start()
    process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, log.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description="Random options, random kills.")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--minutes", type=float, help="begin no trial after so many; start again to go on")
    parser.add_argument("--runs", type=Path, default=RESULTS / "soak_runs.jsonl", help="file of the trials made so far")
    parser.add_argument("--memory-runs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    options = parser.parse_args()
    torch.set_num_threads(1)  # of the forks, too
    started, made = time.monotonic(), {told["trial"] for told in read_runs(options.runs)}
    with tempfile.TemporaryDirectory() as name:
        for number in sorted(set(range(options.trials)) - made):
            if options.minutes is not None and time.monotonic() - started > 60 * options.minutes:
                raise SystemExit(f"{number} of {options.trials} trials are made; start again to go on")
            folder = Path(name) / str(number)
            folder.mkdir()
            told = trial(number, folder)
            with options.runs.open("a") as file:
                file.write(json.dumps({**told, "commit": facts()["commit"]}) + "\n")
            outcome = told["problems"] or told.get("refused") or f"the same after {told.get('stops')}"
            print(f"{number}: {' '.join(told['words'][2:])}: {outcome}", flush=True)
            shutil.rmtree(folder)
        trials = [told for told in read_runs(options.runs) if told["trial"] < options.trials]
        memory = memory_growth(options.memory_runs, Path(name))
    bad = [told for told in trials if told["problems"]]
    refused = [told for told in trials if "refused" in told]
    result = {
        **facts(threads=1), "num_trials": len(trials), "num_refused": len(refused), "num_wrong": len(bad),
        "resident_megabytes": memory, "wrong": bad, "trials": trials,
    }  # fmt: skip
    print(f"{len(trials)} trials, {len(refused)} refused, {len(bad)} wrong; resident MB {memory}")
    write_result(options.out, result)


if __name__ == "__main__":
    main()
