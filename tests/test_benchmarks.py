"""Each benchmark runs in a small setting and writes what it promises; what they measure is not judged here."""

import importlib
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from tests.reference.runs import tiny

from scrimp.steps import Muon
from scrimp.train.recipes import fashion_mnist, find_recipe
from scrimp.train.run import run

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """Import a script of the benchmarks folder, as a script beside it would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in [path.stem for path in BENCHMARKS.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.fixture
def run_main(bench, monkeypatch, tmp_path, capsys):
    """Run a script's ``main`` in this process; returns its result and what it printed."""

    def run(name, *words):
        module, out = bench(name), tmp_path / "result.json"
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--out", str(out), *map(str, words)])
        module.main()
        return json.loads(out.read_text()), capsys.readouterr().out

    return run


def test_loop_overhead(run_main, bench, monkeypatch):
    monkeypatch.setattr(bench("loop_overhead"), "keep_large_blocks", lambda: False)  # it is for the whole process
    words = ["--models", "small-cnn:width=4", "--batch-size", 32, "--segments", 1, "--steps", 3, "--warmup", 1]
    num_threads = torch.get_num_threads()
    try:
        result, _ = run_main("loop_overhead", *words)
    finally:
        torch.set_num_threads(num_threads)
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
def test_peaks_are_those_of_a_process_of_its_own(bench, tmp_path):
    memory = bench("memory")
    synthetic = {"recipe": "digits", "seed": 0, "shape": [1, 8, 8], "num_classes": 10}
    words = ["train", "digits", "--savings", "none", "--num-epochs", "0.1", "--device", "cpu"]
    words += ["--out", str(tmp_path / "run")]
    for task in ({"synthetic": synthetic}, {"words": words}):
        peaks = memory._in_process(task, tmp_path)
        # torch alone takes more than 100 MB; the parts are sampled, the whole is the kernel's
        assert 100e6 < peaks["anonymous_bytes"] + peaks["file_bytes"] <= 1.2 * peaks["peak_bytes"]
    assert (tmp_path / "run" / "summary.json").exists()


def test_memory_compares_with_the_synthetic_batch(run_main, bench, monkeypatch):
    peak_bytes = iter([100e6, 350e6, 300e6, 120e6, 360e6, 330e6, 100e6, 400e6, 310e6])
    parts = {"anonymous_bytes": 60, "file_bytes": 40}
    monkeypatch.setattr(bench("memory"), "_in_process", lambda task, folder: {"peak_bytes": next(peak_bytes), **parts})
    result, printed = run_main("memory", "--data", "/somebody/cifar10")
    assert result["excess_bytes"]["warm"]["median"] == 210e6
    assert result["excess_bytes"]["cold"]["median"] == 250e6
    assert result["holds"] is True
    assert result["data"] == ".../cifar10"
    assert "warm: +210 MB" in printed


def test_import_time(run_main, bench, monkeypatch):
    import_time = bench("import_time")
    measured = import_time._python(import_time.WITH_SCRIMP)
    assert measured.keys() == {"torch", "scrimp"}
    assert min(measured.values()) > 0

    seconds = iter([9.0, 0.1, 0.5, 0.2])  # the first does not count
    monkeypatch.setattr(
        import_time,
        "_python",
        lambda program: {"torch": 1.0, "scrimp": next(seconds)} if "scrimp" in program else {"torch": 2.0},
    )
    result, printed = run_main("import_time", "--runs", 3)
    assert result["seconds_beyond_torch"]["median"] == 0.2
    assert result["torch_alone_seconds"]["median"] == 2.0
    assert result["holds"] is True
    assert printed.startswith("import scrimp: 0.200 s beyond torch")


def test_steps_cost(run_main):
    num_threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    try:
        result, printed = run_main("steps_cost", "--width", 4, "--batch-size", 64, "--rounds", 2)
    finally:
        torch.set_num_threads(num_threads)
        torch.random.set_rng_state(state)
    ratios = result["ratio_to_plain"]
    assert len(ratios) == 12
    assert result["frozen_to_trained_whitening_bias"]["n"] == 2
    assert all(ratio["n"] == 2 and ratio["median"] > 0 for ratio in ratios.values())
    assert ratios["two branches"]["median"] > 1.2  # twice the images
    assert "Muon" in printed


def test_steps_augmentation(run_main, bench, monkeypatch):
    monkeypatch.setattr(bench("steps_augmentation"), "keep_large_blocks", lambda: False)  # it is for the whole process
    num_threads = torch.get_num_threads()
    try:
        result, printed = run_main("steps_augmentation", "--samples", 700, "--batch-size", 100, "--rounds", 2)
    finally:
        torch.set_num_threads(num_threads)
    whole = result["values"]["crop, flip, cutout"]
    assert whole["n"] == 2
    assert 0 < whole["median"] < 0.5
    assert result["holds"] is True
    assert result["allocator_keeps_blocks"] is False
    assert "crop, flip, cutout" in printed


def test_steps_ladder_goes_on_where_it_stopped(run_main, tmp_path):
    num_threads = torch.get_num_threads()
    words = [
        "steps_ladder", "--data", "digits", "--image-size", 8, "--width", 4, "--batch-size", 64, "--rounds", 1,
        "--epochs", 0.2, 0.4, "--rungs", 0, 1, 10, "--runs", tmp_path / "runs.jsonl",
    ]  # fmt: skip
    try:
        first, printed = run_main(*words, "--seeds", 1)
        assert printed.count("seed 0") == 6
        second, printed = run_main(*words, "--seeds", 2, "--parts", "accuracy", "--page", tmp_path / "ladder.html")
    finally:
        torch.set_num_threads(num_threads)
    assert (printed.count("seed 0"), printed.count("seed 1")) == (0, 6)
    page = (tmp_path / "ladder.html").read_text()
    assert page.count("<figure") == 3  # published, epochs to the target, accuracy against epochs
    assert "ghost batch norm" in page
    names = [row["name"] for row in first["speed"]]
    assert (len(names), names[0], names[-1]) == (12, "baseline", "baseline again")
    assert all(row["times_the_baseline"]["median"] > 0 for row in first["speed"])
    rung = second["accuracy"]["rungs"][1]
    assert rung["at_epochs"]["0.2"]["minus_the_rung_before"]["n"] == 2
    assert rung["at_epochs"]["0.4"]["accuracy"]["detectable"] >= 0
    assert rung["at_epochs"]["0.4"]["accuracy"]["n"] == 2
    assert second["accuracy"]["rungs"][2]["at_epochs"] == {}
    assert second["accuracy"]["rungs"][10]["published"]["v100_seconds"] == 26


def test_steps_effects_goes_on_where_it_stopped(run_main, bench, tmp_path):
    num_threads, effects = torch.get_num_threads(), bench("steps_effects")
    words = ["steps_effects", "--data", "digits", "--width", 4, "--image-size", 14, "--first-size", 10]
    words += ["--batch-size", 64, "--num-epochs", 0.1, "--runs", tmp_path / "runs.jsonl"]
    try:
        _, printed = run_main(*words, "--seeds", 1)
        result, again = run_main(*words, "--seeds", 2, "--rows", "two branches", "no whitening")
    finally:
        torch.set_num_threads(num_threads)
    assert printed.count("seed 0") == len(effects.rows_of(find_recipe("cifar10")))
    assert (again.count("seed 0"), again.count("seed 1")) == (0, 3)
    assert len(result["effects"]) == len(effects.EFFECTS)
    by_trick = {line["trick"]: line for line in result["effects"]}
    assert by_trick["whitened input"]["points"]["n"] == by_trick["six views"]["points"]["n"] == 2
    lines = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
    runs = {(one["row"], one["seed"]): one for one in lines}
    assert len({one["test_loss_nats"] for one in runs.values()}) == len(runs)  # none is another by mistake
    gains = [runs["the recipe", seed]["test_accuracy"] - runs["no whitening", seed]["test_accuracy"] for seed in (0, 1)]
    assert by_trick["whitened input"]["points"]["mean"] == pytest.approx(50 * sum(gains))


def test_what_a_number_of_pairs_can_see(bench):
    # of 4 pairs with a deviation of 1: (3.18 + 0.98) / 2
    differences = [-(1.5**0.5), 0.0, 0.0, 1.5**0.5]
    assert bench("environment").detectable(differences) == pytest.approx(2.08)
    assert bench("environment").detectable([1.0]) is None


def test_epochs_to_a_target(bench):
    epochs_to = bench("steps_ladder").epochs_to
    assert epochs_to({2.0: 0.5, 8.0: 0.7}, 0.6) == pytest.approx(4)
    assert epochs_to({2.0: 0.5, 4.0: 0.4, 8.0: 0.7}, 0.7) == pytest.approx(8)
    assert epochs_to({2.0: 0.5, 8.0: 0.7}, 0.4) == 2
    assert epochs_to({2.0: 0.5, 8.0: 0.7}, 0.8) is None


def test_muon_by_hand_takes_the_steps_of_ours(bench):
    """What the recipe's speed is compared with does the same work."""

    def net():
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3), torch.nn.Conv2d(4, 40, 1))

    ours, theirs = net(), net()
    theirs.load_state_dict(ours.state_dict())
    sgd = torch.optim.SGD([p for p in ours.parameters() if p.dim() < 4], lr=0.01, momentum=0.85, nesterov=True)
    filters = [p for p in ours.parameters() if p.dim() == 4]
    momentum = {"momentum": 0.6, "num_iterations": 3, "renormalize": True}
    optimizers = [
        Muon(filters, lr=0.01, auxiliary=sgd, **momentum),
        bench("steps_throughput").MuonByHand(list(theirs.parameters()), lr=0.01),
    ]
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            model(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-4)  # steps of 0.01 in bfloat16


def test_steps_throughput(run_main, bench, monkeypatch):
    monkeypatch.setattr(bench("steps_throughput"), "keep_large_blocks", lambda: False)  # it is for the whole process
    num_threads = torch.get_num_threads()
    words = ["--batch-size", 8, "--samples", 64, "--steps", 1, "--rounds", 1, "--width", 4]
    try:
        result, printed = run_main("steps_throughput", *words)
    finally:
        torch.set_num_threads(num_threads)
    assert result["ratios"]["cpu"].keys() == {*result["at_least"], "by_hand_all_trained"}
    assert result["at_least"].keys() == {"plain_to_94", "float32_nchw", "by_hand"}
    seconds = {name: value["median"] for name, value in result["seconds_per_example"]["wall"].items()}
    assert min(seconds.values()) > 0
    recipe = find_recipe("cifar10")
    assert result["epochs_to_94"] == {"recipe": recipe.num_epochs, "plain": 24.0}
    shares = result["share_of_training_by_phase"]
    assert shares["recipe_32_frozen"] == 0.4
    assert sum(share for name, share in shares.items() if "_28" in name) == pytest.approx(0.3)
    frozen = sum(share for name, share in shares.items() if name.endswith("_frozen"))
    assert frozen == pytest.approx(1 - recipe.whiten_bias_epochs / recipe.num_epochs, abs=1e-3)
    trained = sum(share * seconds[name] for name, share in shares.items())
    assert result["ratios"]["wall"]["by_hand_all_trained"]["median"] == pytest.approx(
        seconds["by_hand"] / seconds["recipe_32"], rel=1e-3
    )
    plain = 24 * 50_000 * seconds["plain"] + 10_000 * seconds["plain_evaluation"]
    ours = recipe.num_epochs * 50_000 * trained + 10_000 * seconds["recipe_evaluation"]
    assert result["ratios"]["wall"]["plain_to_94"]["median"] == pytest.approx(plain / ours, rel=1e-3)
    assert "float32_nchw" in printed


def test_throughputs_loops_see_the_same_kind_of_images(bench):
    throughput = bench("steps_throughput")
    dataset = throughput.synthetic_cifar10(64)
    for batches in (
        throughput.plain_batches(dataset, 16),
        throughput.device_batches(dataset, 16, dtype=torch.float32),
        throughput.device_batches(dataset, 16, dtype=torch.bfloat16),
    ):
        images, labels = next(batches)
        assert images.shape == (16, 3, 32, 32)
        assert labels.shape == (16,)
        assert abs(float(images.float().mean())) < 0.05
        assert float(images.float().std()) == pytest.approx(1, abs=0.05)


def test_steps_accuracy_goes_on_where_it_stopped(run_main, tmp_path):
    words = [
        "steps_accuracy", "--recipes", "digits", "--epochs", 0.2, 0.4, "--model-args", "width=4", "--device", "cpu",
        "--threads", 1, "--runs", tmp_path / "runs.jsonl", "--peak-tflops", 2,
    ]  # fmt: skip
    run_main(*words, "--seeds", 1)
    result, printed = run_main(*words, "--seeds", 2)
    assert "seed 0" not in printed
    short, long = result["table"]
    assert (short["num_epochs"], long["num_epochs"]) == (0.2, 0.4)
    assert short["accuracy"]["n"] == 2
    of_seeds = [run["test_accuracy"] for run in result["runs"] if run["num_epochs"] == 0.2]
    assert short["accuracy"]["mean"] == pytest.approx(sum(of_seeds) / 2)
    assert short["accuracy"]["half_width"] == pytest.approx(12.71 * abs(of_seeds[0] - of_seeds[1]) / 2)
    assert short["share_of_peak"] == pytest.approx(short["tflop_per_second"] / 2)
    convolutions = 2 * 9 * (64 * 4 + 64 * 16 + 16 * 32 + 16 * 64) + 2 * 8 * 10  # of width 4, on 8 x 8 and 4 x 4 pixels
    visits = result["runs"][0]["sample_visits"]
    assert short["tflop"] * 1e12 == pytest.approx(convolutions * (3 * visits + 359))


def test_recipes_runs_once_and_skips_what_is_done(run_main):
    words = ["recipes", "--recipes", "digits", "--seeds", 3, "--flags", "--savings", "none", "--num-epochs", 0.2]
    first, _ = run_main(*words)
    again, printed = run_main(*words)
    assert first == again
    assert "digits, seed 3: in the file already" in printed
    (run,) = first["runs"]
    assert (run["recipe"], run["seed"]) == ("digits", 3)
    assert run["summary"]["num_epochs"] == 0.2
    assert run["run"] == "scrimp train digits --seed 3 --savings none --num-epochs 0.2"
    (line,) = first["table"]
    assert line["test_accuracy"]["median"] == pytest.approx(run["summary"]["test_accuracy"], rel=1e-5)


def test_spread(bench):
    environment = bench("environment")
    assert environment.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {
        "n": 5, "median": 3.0, "quartile_1": 2.0, "quartile_3": 4.0, "min": 1.0, "max": 5.0,
    }  # fmt: skip
    assert environment.spread([2.0])["quartile_3"] == 2.0


def test_samples_cost(run_main):
    result, printed = run_main("samples_cost", "--num-samples", 5000, "--repeats", 1, "--blocks", 1)
    assert set(result["planning"][0]["rules"]) == {"MeanThreshold", "Quantiles", "Budget", "official"}
    assert result["planning"][0]["rules"]["Budget"]["resident_bytes_per_sample"] == 4
    assert result["claims"]["resident_bytes_per_sample_at_most_8"]
    assert "reduce adds" in printed


def test_samples_table_goes_on_where_it_stopped(run_main, tmp_path):
    words = ["--num-epochs", 4, "--runs", tmp_path / "runs.jsonl", "--keep", 0.5]
    result, _ = run_main("samples_table", *words, "--seeds", 1)
    rows = ["full", "shortened", "shortened, same rates", "dynamic random", "InfoBatch", "budget"]
    assert [entry["row"] for entry in result["table"]] == rows
    result, printed = run_main("samples_table", *words, "--seeds", 2)
    assert printed.count("seed 1") == 6
    assert "seed 0" not in printed
    by_row = {entry["row"]: entry for entry in result["table"]}
    assert by_row["budget"]["minus_full"]["n"] == by_row["budget"]["minus_shortened"]["n"] == 2
    assert by_row["full"]["visits_saved"] == 0
    for row in ("shortened", "dynamic random", "budget"):
        assert by_row[row]["visits_saved"] == pytest.approx(0.25, abs=0.03)


def test_samples_table_tunes_each_row(run_main, tmp_path):
    words = ["--num-epochs", 4, "--runs", tmp_path / "runs.jsonl", "--keep", 0.5, "--rows", "full", "budget"]
    words += ["--num-samples", 300, "--half-size", "--lr-grid", 0.1, 1e-6, "--tuning-seeds", 1]
    result, printed = run_main("samples_table", *words, "--seeds", 1)
    assert printed.count("seed 1000") == 4
    assert result["learning_rates"] == {"full": 0.1, "budget": 0.1}
    assert result["tuning"]["full"]["0.1"] > result["tuning"]["full"]["1e-06"]
    assert [entry["accuracy"]["n"] for entry in result["table"]] == [1, 1]
    again, printed = run_main("samples_table", *words, "--seeds", 1)
    assert "seed" not in printed
    assert again["table"] == result["table"]


def test_samples_sharded(run_main):
    result, _ = run_main("samples_sharded", "--num-samples", 5000)
    assert result["claims"] == {"same_plan": True, "scores_bytes_per_sample_at_most_8_over_processes": True}
    assert result["kinds"]["sharded"]["scores_bytes_per_sample"] < 2.01


def test_checkpoint_codecs(run_main, tmp_path, monkeypatch, bench):
    result, _ = run_main("checkpoints_speed", "--width", 64, "--repeats", 1, "--symbols", 50_000)
    assert {of["optimizer"] for of in result["speed"]} == {"adamw", "sgd"}
    assert result["claims"].keys() >= {"writes_0.5_gb_per_second", "within_2_percent_of_entropy"}
    text = tmp_path / "text.txt"
    text.write_text("abcdefghijklmnopqrstuvwxyz " * 40)
    curves = bench("checkpoints_tradeoff")
    for table, names in (
        ("RESIDUALS", ["Residual, 0.6 x movement"]), ("EXCPS", ["ExCP, cap 2.5"]), ("OTHERS", ["Residual.small()"])
    ):  # fmt: skip
        monkeypatch.setattr(curves, table, {name: getattr(curves, table)[name] for name in names})
    words = ["--data", text, "--num-states", 3, "--every", 1, "--stride", 1, "--width", 64]
    result, _ = run_main("checkpoints_tradeoff", *words, "--states", tmp_path / "states.safetensors")
    again, _ = run_main("checkpoints_tradeoff", *words, "--states", tmp_path / "states.safetensors")
    assert again["curves"] == result["curves"]
    assert len(result["chains"]["Residual()"]["errors"]) == 2
    result, _ = run_main("checkpoints_fuzz", "--cases", 3)
    assert result["failures"] == 0


def test_samples_beyond_goes_on_where_it_stopped(run_main, bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench("beyond_tasks"), "NUM_TEST", 20)
    words = ["--num-epochs", 4, "--num-samples", 64, "--runs", tmp_path / "runs.jsonl"]
    words += ["--tasks", "segmentation", "detection", "diffusion"]
    run_main("samples_beyond", *words, "--seeds", 1)
    result, printed = run_main("samples_beyond", *words, "--seeds", 2)
    assert printed.count("seed 1") == 15
    assert "seed 0" not in printed
    assert {(entry["task"], entry["row"]) for entry in result["table"]} == {
        (task, row) for task in words[-3:] for row in bench("samples_beyond").ROWS
    }
    for entry in result["table"]:
        assert entry["value"]["n"] == 2
        if entry["row"] != "full":  # all rows make the visits of InfoBatch
            saved = [other["visits_saved"] for other in result["table"] if other["task"] == entry["task"]][1]
            assert entry["visits_saved"] == pytest.approx(saved, abs=0.01)
            assert 0 < saved < 0.4


def test_checkpoints_resume_goes_on_where_it_stopped(run_main, tmp_path):
    words = ["--settings", "digits", "--every", 4, "--saves", 2, "--then", 4, "--runs", tmp_path / "runs.jsonl"]
    kept = ["--work", tmp_path / "work"]
    result, _ = run_main("checkpoints_resume", *words, *kept, "--rows", "lossless", "residual")
    rows = ["lossless", "residual", "weights only", "uniform values, 8 bits"]
    again, printed = run_main("checkpoints_resume", *words, *kept, "--rows", *rows)
    assert again["runs"][:2] == result["runs"]
    assert "2 rows are there" in printed
    lossless, residual, weights_only, uniform = again["runs"]
    assert lossless["worst_difference"] == 0 != weights_only["worst_difference"]
    assert uniform["worst_difference"] != 0
    assert residual["delta_ratio"] > 5 > weights_only["delta_ratio"] > lossless["delta_ratio"] > 1
    assert len({run["raw_bytes_per_weight"] for run in again["runs"]}) == 1  # one denominator for all
    assert residual["restores"][0]["num_steps"] == 4


def test_checkpoints_resume_from_a_recording_is_as_without(run_main, bench, tmp_path):
    words = ["--settings", "digits", "--every", 3, "--saves", 2, "--then", 3, "--rows", "residual"]
    replayed, _ = run_main("checkpoints_resume", *words, "--runs", tmp_path / "replayed.jsonl")
    resume = bench("checkpoints_resume")
    told = {"setting": "digits", "seed": 0, "every": 3, "saves": 2, "then": 3}
    config = resume.configs(None)["digits"]
    dataset = resume.load_dataset(config.data)
    make = resume.functools.partial(resume.Training, config, dataset, 0, 9)
    recording, _ = resume.record(make, tmp_path, told)
    assert recording.steps() == [3, 6]
    store = resume.CheckpointStore(tmp_path / "by hand", exact_tail=0)
    by_hand = resume.resume_equivalence(make, store, save_every=3, restore_at=[6], num_steps=9)
    (run,) = replayed["runs"]
    assert run["restores"][0]["difference"] == by_hand.restores[0].difference != 0
    assert run["delta_ratio"] == by_hand.delta_ratio


def test_bits_models(run_main):
    pytest.importorskip("transformers", reason="needs the extra transformers")
    result, printed = run_main("bits_models")
    assert result["holds"] is True
    assert [row["model"] for row in result["rows"]] == ["ResNet", "ConvNeXt", "MobileNetV2", "ViT", "GPT-2", "Llama"]
    assert all(row["weights_after"] < row["weights_before"] for row in result["rows"])
    assert printed.count("channels") >= 6


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
    shared = {"environment.py", "beyond_tasks.py", "small_runs.py", "value_quantiser.py"}
    scripts = {path.name for path in BENCHMARKS.glob("*.py")} - shared
    assert [name for name in scripts if f"| `{name}` |" not in listed] == []
    assert len(listed.splitlines()) <= 72


def test_bits_latency(run_main):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    num_threads = torch.get_num_threads()
    try:
        words = ["--width", 4, "--rounds", 2, "--train-batch-size", 4, "--batch-sizes", 2]
        result, shown = run_main("bits_latency", *words)
    finally:
        torch.set_num_threads(num_threads)
    assert 0.1 < result["weights_kept_fraction"] < 0.4
    assert result["removal"]["num_channels_removed"] > 0
    assert set(result["latency_by_batch_size"]["2"]) == {"torch", "onnxruntime"}
    assert "a removal takes" in shown


def test_savings_off(run_main):
    num_threads = torch.get_num_threads()
    try:
        result, _ = run_main("savings_off", "--width", 4, "--batch-size", 16, "--rounds", 1, "--steps", 2)
    finally:
        torch.set_num_threads(num_threads)
    assert result["off_to_off_again"]["n"] == result["off_to_by_hand"]["n"] == 1


def test_soak_finds_what_is_wrong(bench, tmp_path):
    soak = bench("soak")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out in (whole, parts):
        run(tiny(keep=0.6, num_epochs=3), out=out)
    assert soak.differences(whole, parts) == []
    (parts / ".config.json.1234.tmp").write_text("")
    assert soak.differences(whole, parts) == ["orphaned files: ['.config.json.1234.tmp']"]
    run(tiny(keep=0.6, num_epochs=3, seed=1), out=tmp_path / "other")
    assert soak.differences(whole, tmp_path / "other") == ["the weights differ", "the records differ"]
    assert soak.draw_words(random.Random(3)) == soak.draw_words(random.Random(3))


def test_the_readme_shows_the_result(bench):
    readme = bench("readme")
    result = json.loads((BENCHMARKS / "results" / "compare_digits.json").read_text())
    text = readme.README.read_text()
    assert readme.with_result(text, result) == text
    other = {**result, "command_seconds": 1234.4, "hardware": {"num_cores": 4}}
    assert "`, 1234 seconds on four cores; means" in readme.with_result(text, other)
    with pytest.raises(AssertionError, match="the README has lost"):
        readme.with_result(text.replace("<!-- end of table -->", ""), result)


def test_install_times_each_line_and_weighs_what_is_there(bench, tmp_path):
    install = bench("install")
    lines = install.lines_of((BENCHMARKS.parent / "README.md").read_text())
    assert lines[0].startswith("python3 -m venv .venv")
    assert lines[-1] == "scrimp train"
    first, second = install.timed(["sleep 0.2", "cd /; pwd"], tmp_path)
    assert (first["line"], second["line"]) == ("sleep 0.2", "cd /; pwd")
    assert 0.2 <= first["seconds"] < 2
    with pytest.raises(SystemExit, match="no such thing"):
        install.timed(["echo no such thing >&2; false"], tmp_path)
    (tmp_path / "a").write_bytes(bytes(10_000))
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert 10_000 <= install.bytes_in(tmp_path) < 20_000
    largest, *_ = install.packages_in(Path(sys.prefix))
    assert largest["bytes"] > 10**7


def test_compare_keeps_what_the_command_wrote(run_main, bench, monkeypatch, tmp_path):
    cell = {"mean": 2.0, "ratio": 0.05}
    variant = {"name": "all", **dict.fromkeys([key for key, _, _ in bench("compare").COLUMNS], cell)}
    told = {"variants": [variant], "command": "scrimp compare --out /somebody/runs"}

    def scrimp(words):
        out = Path(words[words.index("--out") + 1])
        out.mkdir()
        (out / "comparison.json").write_text(json.dumps(told))

    monkeypatch.setattr(bench("compare"), "scrimp", scrimp)
    result, printed = run_main("compare", "--runs", tmp_path / "runs", "--flags", "--num-epochs", 3)
    assert result["comparison"]["command"] == "scrimp compare digits --seeds 2 --num-epochs 3"
    assert "| all | 200.00 % (1/20) |" in printed


def test_bits_speed(run_main, bench, monkeypatch):
    monkeypatch.setattr(bench("bits_speed"), "keep_large_blocks", lambda: False)  # it is for the whole process
    num_threads = torch.get_num_threads()
    try:
        result, shown = run_main("bits_speed", "--width", 2, "--batch-size", 4, "--rounds", 2)
    finally:
        torch.set_num_threads(num_threads)
    assert result["ratio_to_plain"].keys() == {"plain again", "bits and range", "bits and exponent", "step and range"}
    assert all(ratio["n"] == 2 for ratio in result["ratio_to_plain"].values())
    assert "step and range" in shown


def test_bits_epoch_time(run_main):
    num_threads = torch.get_num_threads()
    try:
        result, shown = run_main("bits_epoch_time", "--width", 4, "--batch-size", 4, "--rounds", 1)
    finally:
        torch.set_num_threads(num_threads)
    kept = [point["weights_kept_fraction"] for point in result["points"]]
    assert kept[0] == 1.0
    assert kept == sorted(kept, reverse=True)
    assert kept[3] == pytest.approx(0.18, abs=0.05)
    assert result["points"][0]["corrected_ratio_to_start"] == 1.0
    assert result["points"][-1]["corrected_ratio_to_start"] == 0.0
    assert "one channel per layer" in shown


def test_bits_target(run_main, tmp_path):
    small = ["num_epochs=4", 'model_args={"width":8}', "threads=1"]
    words = ["--targets", 2500, "--seeds", 1, "--runs", tmp_path / "runs", "--set", *small]
    result, shown = run_main("bits_target", *words)
    (one,) = result["runs"]
    assert abs(one["off"]) == result["largest_off"] <= 0.02
    assert "2,500 bytes, seed 0" in shown


def test_bits_curve_goes_on_where_it_stopped(run_main, tmp_path):
    small = ["num_epochs=1", 'model_args={"width":4}', "threads=1", "checkpoint_every=1"]
    words = ["--recipe", "digits", "--gammas", 0.5, "--seeds", 1, "--runs", tmp_path / "runs", "--set", *small]
    first, _ = run_main("bits_curve", *words)
    again, _ = run_main("bits_curve", *words)
    assert [point["gamma"] for point in first["points"]] == [None, 0.5]
    assert first["points"] == again["points"]
    packed = (tmp_path / "runs" / "digits" / "gamma-0.5" / "seed-0" / "model.scrimp").stat().st_size
    assert first["points"][1]["packed_bytes"]["median"] == packed
