"""Each benchmark runs in a small setting and writes what it promises; what they measure is not judged here."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import scrimp
from scrimp.train.recipes import fashion_mnist

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """Import a script of the benchmarks folder, as a script beside it would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in [path.stem for path in BENCHMARKS.glob("*.py")]:
        sys.modules.pop(name, None)


def run_script(name, *words, out):
    """Run a benchmark to its end; returns its result and what it printed."""
    paths = [str(Path(scrimp.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / name, "--out", out, *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text()), done.stdout


def test_loop_overhead(tmp_path):
    words = ["--models", "small-cnn:width=4", "--batch-size", 32, "--segments", 1, "--steps", 3, "--warmup", 1]
    result, _ = run_script("loop_overhead.py", *words, out=tmp_path / "result.json")
    (of_model,) = result["results"]
    assert (of_model["model"], of_model["model_args"], of_model["batch_size"]) == ("small-cnn", {"width": 4}, 32)
    assert of_model["weights_equal"] is True
    assert of_model["ratio_cpu"]["n"] == 1
    assert of_model["ratio_cpu"]["median"] > 0
    assert {"cpu", "num_cores", "memory_bytes", "load_average"} <= result["hardware"].keys()
    assert result["versions"]["torch"] == torch.__version__


def test_loop_overhead_notices_other_work(bench):
    loop_overhead = bench("loop_overhead")
    dataset = loop_overhead.synthetic_fashion_mnist(64, seed=0)
    config = fashion_mnist().replace(model="small-cnn", model_args={"width": 4}, batch_size=8, precision="float32")
    with torch.random.fork_rng():
        jobs = [loop_overhead.build_job(config, dataset, torch.device("cpu"), None)]
        jobs.append(loop_overhead.build_job(config, dataset, torch.device("cpu"), jobs[0].model.state_dict()))
        loop_overhead.run_by_hand(jobs[0], 1, 3)
        loop_overhead.run_ours(jobs[1], 1, 3)
    loop_overhead.assert_same_work(*jobs)
    with torch.no_grad():
        next(jobs[0].model.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(AssertionError, match="the model of our loop differs"):
        loop_overhead.assert_same_work(*jobs)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from Linux's /proc")
def test_memory(tmp_path):
    words = ["--recipe", "digits", "--shape", 1, 8, 8, "--num-epochs", 0.1, "--repeats", 1]
    result, _ = run_script("memory.py", *words, out=tmp_path / "result.json")
    (run,) = result["runs"]
    assert list(run) == ["synthetic", "cold", "warm"]
    for peaks in run.values():
        # torch alone takes more than 100 MB; the parts are sampled, the whole is the kernel's
        assert 100e6 < peaks["anonymous_bytes"] + peaks["file_bytes"] <= 1.2 * peaks["peak_bytes"]
    assert result["excess_bytes"]["warm"]["median"] == pytest.approx(
        run["warm"]["peak_bytes"] - run["synthetic"]["peak_bytes"], rel=1e-4
    )


def test_import_time(tmp_path):
    result, _ = run_script("import_time.py", "--runs", 1, out=tmp_path / "result.json")
    assert result["seconds_beyond_torch"]["n"] == 1
    assert 0 < result["seconds_beyond_torch"]["median"] < result["torch_seconds"]["median"] * 10


def test_recipes_runs_once_and_skips_what_is_done(tmp_path):
    flags = ["--flags", "--num-epochs", 0.2, "--model-args", "width=4"]
    words = ["recipes.py", "--recipes", "digits", "--seeds", 3, *flags]
    first, _ = run_script(*words, out=tmp_path / "result.json")
    again, printed = run_script(*words, out=tmp_path / "result.json")
    assert first == again
    assert "digits, seed 3: in the file already" in printed
    (run,) = first["runs"]
    assert (run["recipe"], run["seed"]) == ("digits", 3)
    assert run["summary"]["num_epochs"] == 0.2
    assert run["run"] == "scrimp train digits --seed 3 --num-epochs 0.2 --model-args width=4"
    (line,) = first["table"]
    assert line["test_accuracy"]["median"] == pytest.approx(run["summary"]["test_accuracy"], rel=1e-5)


def test_spread(bench):
    environment = bench("environment")
    assert environment.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {
        "n": 5, "median": 3.0, "quartile_1": 2.0, "quartile_3": 4.0, "min": 1.0, "max": 5.0,
    }  # fmt: skip
    assert environment.spread([2.0])["quartile_3"] == 2.0


def test_results_name_no_private_folder(bench):
    environment = bench("environment")
    assert environment.without_home("/home/me/data/cifar10") == ".../cifar10"
    assert environment.without_home("--seeds") == "--seeds"
    for path in environment.RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert '"/' not in json.dumps(result), f"{path.name} names an absolute path"
        assert " /" not in json.dumps(result), f"{path.name} names an absolute path"


def test_every_claim_is_listed():
    listed = (BENCHMARKS / "README.md").read_text()
    scripts = {path.name for path in BENCHMARKS.glob("*.py")} - {"environment.py"}
    assert [name for name in scripts if f"| `{name}` |" not in listed] == []
    assert len(listed.splitlines()) <= 40
