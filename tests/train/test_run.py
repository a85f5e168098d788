"""A whole run: its directory, its summary, its model, and what it leaves of the caller's process."""

import json
import math
import random
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from tests.reference.command import same_bits, weights
from tests.reference.models import TiedNet
from tests.reference.runs import run_until, tiny
from torch import Tensor

from scrimp._core.rng import generator
from scrimp.checkpoints import CheckpointStore
from scrimp.errors import (
    CheckpointNotFoundError,
    ConfigError,
    DataNotFoundError,
    FormatError,
    NonFiniteLossError,
    RunExistsError,
)
from scrimp.report.record import RunStatus
from scrimp.train.config import TrainConfig
from scrimp.train.data import load_dataset
from scrimp.train.journal import StepInfo
from scrimp.train.load import load_run
from scrimp.train.models import ModelFacts, build_model
from scrimp.train.outcome import command_line
from scrimp.train.pruning import with_rule_named
from scrimp.train.recipes import RECIPES, text
from scrimp.train.run import Started, run

# DESIGN.md, "The public surface"
PROMISED = {
    "recipe", "seed", "device", "test_accuracy", "num_epochs", "num_steps", "sample_visits", "sample_visits_full",
    "train_seconds", "examples_per_second", "model_float32_bytes", "model_packed_bytes", "weights_kept_fraction",
    "checkpoint_raw_bytes", "checkpoint_stored_bytes", "versions",
}  # fmt: skip


def digits_by_hand() -> tuple[Tensor, Tensor]:
    """The test images, normalised by the training images, and their labels."""
    data = load_dataset("digits")
    train = data.train.inputs.double() / 255
    images = (data.test.inputs.double() / 255 - train.mean()) / train.std(correction=0)
    assert data.test.targets is not None
    return images.float(), data.test.targets


# what a run leaves


def test_a_finished_run_leaves_everything(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny(num_epochs=1.5, seed=3)
    done = run(config, out=out)
    assert (done.run_dir, done.status, done.step) == (out, RunStatus.FINISHED, 33)
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "summary.json", "report.html", "checkpoints", "model.safetensors"}
    assert TrainConfig.from_dict(json.loads((out / "config.json").read_text())) == with_rule_named(config)
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".")] == []

    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() >= PROMISED
    assert done.summary is not None
    assert summary == done.summary.to_dict()
    num_parameters = sum(t.numel() for n, t in weights(out).items() if "running" not in n and "num_batches" not in n)
    expected = {
        "recipe": "digits", "data": "digits", "model": "small-cnn", "seed": 3, "device": "cpu", "precision": "float32",
        "threads": 1, "world_size": 1, "num_epochs": 1.5, "num_steps": 33, "sample_visits": 33 * 64,
        "sample_visits_full": 33 * 64, "num_parameters": num_parameters, "model_float32_bytes": 4 * num_parameters,
        "model_packed_bytes": None, "weights_kept_fraction": 1.0, "sample_text": None,
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["examples_per_second"] > 0
    assert 0 < summary["train_seconds"] <= summary["total_seconds"]
    assert summary["peak_memory_bytes"] > 50_000_000


def test_the_saved_model_has_the_reported_accuracy(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(tiny(num_epochs=3), out=out)
    fresh = build_model("small-cnn", {"width": 4}, ModelFacts(num_classes=10, in_channels=1, image_size=8))
    fresh.load_state_dict(safetensors.torch.load_file(out / "model.safetensors"))
    images, labels = digits_by_hand()
    assert len(images) == 359
    with torch.no_grad():
        logits = fresh.eval()(images)
    assert done.summary is not None
    assert done.summary.test_accuracy == int((logits.argmax(dim=1) == labels).sum()) / 359
    assert done.summary.test_accuracy > 0.5
    assert done.summary.test_loss_nats == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_the_last_checkpoint_holds_the_saved_model(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tiny(num_epochs=1), out=out)
    assert same_bits(weights(out), CheckpointStore(out / "checkpoints").load()["model"])


def test_tied_weights_are_saved_once_and_load(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tiny(model="tests.reference.models:TiedNet", num_epochs=1), out=out)
    assert set(weights(out)) == {"first.weight", "head.weight", "head.bias"}
    fresh = TiedNet(num_classes=10)
    safetensors.torch.load_model(fresh, out / "model.safetensors")
    assert torch.equal(fresh.second.weight, weights(out)["first.weight"])


def test_a_model_may_keep_tables_from_one_call_to_the_next(tmp_path: Path) -> None:
    config = tiny(model="tests.reference.models:GrowingTable", num_epochs=1, evaluate_every=0.5)
    assert run(config, out=tmp_path / "run").status is RunStatus.FINISHED


def test_a_text_run_writes_a_sample(tmp_path: Path) -> None:
    source = tmp_path / "fable.txt"
    source.write_text("the fox said to the crow that the crow sang well. " * 40)
    config = text().replace(
        data=str(source), model_args={"depth": 1, "width": 16, "num_heads": 2}, context_length=16, batch_size=16,
        num_epochs=2, threads=1, device="cpu", precision="float32",
    )  # fmt: skip
    done = run(config, out=tmp_path / "run")
    assert done.summary is not None
    assert done.summary.test_accuracy is None
    assert done.summary.test_loss_nats is not None
    assert 0 < done.summary.test_loss_nats < math.log(len(set(source.read_text()))) + 0.5
    assert done.summary.sample_text is not None
    assert len(done.summary.sample_text) == 400
    assert set(done.summary.sample_text) <= set(source.read_text())
    again = run(config, out=tmp_path / "again")
    assert again.summary is not None
    assert again.summary.sample_text == done.summary.sample_text
    assert again.summary.restored_sample_text == done.summary.restored_sample_text


@pytest.mark.parametrize("tied", [False, True])
def test_a_text_run_writes_a_sample_with_restored_weights(tmp_path: Path, tied: bool) -> None:
    source = tmp_path / "fable.txt"
    source.write_text("the fox said to the crow that the crow sang well. " * 40)
    config = text().replace(
        data=str(source), model_args={"depth": 1, "width": 64, "num_heads": 2, "tied": tied}, context_length=16,
        batch_size=16, num_epochs=2, checkpoint_every=1, threads=1, device="cpu", precision="float32",
        checkpoint_codec="residual-small", learning_rate=0.1,
    )  # fmt: skip
    done = run(config, out=tmp_path / "run").summary
    assert done is not None
    assert done.restored_sample_text is not None
    assert done.restored_sample_text != done.sample_text  # 0.1 is so rough that history shows
    assert len(done.restored_sample_text) == 400
    # the same by hand: the model with the history's weights, and a text drawn from it
    trained = load_run(tmp_path / "run").model
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    trained.load_state_dict(store.load(only="model", history=True)["model"])
    dataset = load_dataset(str(source))
    tokens, draw = dataset.test.inputs[:16].long()[None], generator(config.seed, "sample_text")
    with torch.inference_mode():
        for _ in range(400):
            chances = torch.softmax(trained(tokens[:, -16:])[:, -1] / 0.8, dim=-1)
            tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=draw)], dim=1)
    assert done.restored_sample_text == dataset.decode(tokens[0, 16:])
    exact = run(config.replace(checkpoint_codec="lossless"), out=tmp_path / "exact").summary
    assert exact is not None
    assert exact.sample_text == done.sample_text
    assert exact.restored_sample_text is None


def test_a_broken_history_does_not_keep_a_text_run_from_ending(tmp_path: Path) -> None:
    source = tmp_path / "fable.txt"
    source.write_text("the fox said to the crow that the crow sang well. " * 40)
    config = text().replace(
        data=str(source), model_args={"depth": 1, "width": 64, "num_heads": 2}, context_length=16, batch_size=16,
        num_epochs=2, checkpoint_every=1, threads=1, device="cpu", precision="float32",
    )  # fmt: skip

    def damage(info: StepInfo) -> None:
        for file in (tmp_path / "run" / "checkpoints").glob("*.key-*"):
            file.write_bytes(b"")

    done = run(config, out=tmp_path / "run", on_step=damage).summary
    assert done is not None
    assert done.sample_text is not None
    assert done.restored_sample_text is None


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    first, same, other = (tmp_path / name for name in ("first", "same", "other"))
    for out, seed in ((first, 1), (same, 1), (other, 2)):
        run(tiny(num_epochs=0.5, seed=seed, model="tests.reference.models:PythonDice"), out=out)
        random.random()
        torch.rand(3)
    assert same_bits(weights(first), weights(same))
    assert not same_bits(weights(first), weights(other))


def test_a_run_may_be_resumed_on_other_threads(tmp_path: Path) -> None:
    config = tiny(num_epochs=1)
    run_until(config.replace(threads=2), tmp_path / "run", 1)
    done = run(config.replace(keep_checkpoints=1), out=tmp_path / "run", resume=True)
    assert done.summary is not None
    assert done.summary.threads == 1
    assert len(CheckpointStore(tmp_path / "run" / "checkpoints").steps()) == 1


def test_the_page_is_there_after_an_interruption(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_until(tiny(), out, 30)
    page = (out / "report.html").read_text()
    assert "interrupted" in page.lower()
    assert not (out / "summary.json").exists()
    assert not (out / "model.safetensors").exists()


# the caller's process


def settings_of_the_process() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
    }


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_the_callers_settings_are_as_they_were(tmp_path: Path) -> None:
    import rich.style  # noqa: F401 - its first import draws from Python's generator

    before = settings_of_the_process()
    config = tiny(num_epochs=1, threads=1, deterministic=True, model="tests.reference.models:dropout_net")
    inside: list[tuple[int, bool]] = []

    def look(step: Any) -> None:
        inside.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))

    run(config, out=tmp_path / "whole", on_step=look)
    assert set(inside) == {(1, True)}
    assert before["threads"] == 2
    assert settings_of_the_process() == before

    run_until(config, tmp_path / "parts", 5)
    assert settings_of_the_process() == before
    random.random()
    torch.rand(1)
    np.random.rand()  # noqa: NPY002
    before = settings_of_the_process()
    run(config, out=tmp_path / "parts", resume=True)
    assert settings_of_the_process() == before


@pytest.mark.usefixtures("two_threads")
def test_the_callers_settings_are_as_they_were_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.reference.models.Exploding.at_step", 2)
    before = settings_of_the_process()
    config = tiny(threads=1, deterministic=True, model="tests.reference.models:Exploding")
    with pytest.raises(NonFiniteLossError):
        run(config, out=tmp_path / "run")
    assert settings_of_the_process() == before


# directories


def test_who_starts_a_run_hears_of_it_first(tmp_path: Path) -> None:
    heard: list[Started] = []
    out = tmp_path / "run"
    run_until(tiny(), out, 7, on_start=heard.append)
    run(tiny(), out=out, resume=True, on_start=heard.append)
    assert [(started.run_dir, started.resumed_step) for started in heard] == [(out, None), (out, 7)]
    assert heard[0].num_parameters == sum(p.numel() for p in heard[0].job.model.parameters())
    assert heard[0].dataset.name == "digits"


def test_runs_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [run(tiny(num_epochs=0.1)).run_dir for _ in range(2)] == [Path("runs/digits-001"), Path("runs/digits-002")]
    custom = run(tiny(num_epochs=0.1).replace(recipe="my own/recipe"))
    assert custom.run_dir == Path("runs/my-own-recipe-001")


def test_the_newest_unfinished_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(num_epochs=1)
    seen: list[int] = []
    stopped = run(config, on_step=lambda info: seen.append(info.step), should_stop=lambda: seen[-1] == 3)
    run(config)
    resumed = run(config, resume=True)
    assert resumed.run_dir == stopped.run_dir == Path("runs/digits-001")
    assert resumed.status is RunStatus.FINISHED
    with pytest.raises(CheckpointNotFoundError, match="no unfinished run of 'digits' under runs/; name one with --out"):
        run(config, resume=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_another_runs_directory_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_until(tiny(), out, 5)
    before = contents(out)
    with pytest.raises(RunExistsError, match=r"other settings .*: batch_size: 64 != 32; seed: 0 != 1\. Choose another"):
        run(tiny(seed=1, batch_size=32), out=out, resume=True)
    with pytest.raises(FileExistsError, match=r"already holds this run; go on with --resume, or choose another --out"):
        run(tiny(), out=out)
    assert contents(out) == before


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunExistsError, match="exists and is not an empty directory"):
        run(tiny(), out=tmp_path)
    with pytest.raises(RunExistsError, match="exists and is not an empty directory"):
        run(tiny(), out=tmp_path / "thesis.txt")
    assert contents(tmp_path) == {"thesis.txt": b"precious"}
    (tmp_path / "empty").mkdir()
    assert run(tiny(num_epochs=0.1), out=tmp_path / "empty").status is RunStatus.FINISHED


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"nothing to resume: .*config.json is missing"):
        run(tiny(), out=tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(tiny(num_epochs=0.5), out=out)
    before = contents(out)
    again = run(tiny(num_epochs=0.5), out=out, resume=True)
    assert (again.status, again.step, again.summary) == (RunStatus.FINISHED, 11, done.summary)
    assert contents(out) == before


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    run(tiny(num_epochs=1), out=whole)
    run_until(tiny(num_epochs=1), out, 8)
    CheckpointStore(out / "checkpoints").delete(8)
    run(tiny(num_epochs=1), out=out, resume=True)
    assert same_bits(weights(out), weights(whole))
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps.count(5) == 1


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_until(tiny(), out, 5)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "batch_size": "many"}))
    with pytest.raises(FormatError, match=r"config\.json: batch_size is 'many': it must be an integer"):
        run(tiny(), out=out, resume=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "small-cmm"}, ConfigError, "did you mean 'small-cnn'"),
        ({"model_args": {"wdith": 4}}, ConfigError, "takes no argument 'wdith'"),
        ({"model": "gpt"}, ConfigError, "vocab_size"),
        ({"batch_size": 2000}, ConfigError, "only 1,438 training samples"),
        ({"data": "no-such-data"}, DataNotFoundError, "no-such-data"),
        ({"device": "cuda:99"}, ConfigError, "device is 'cuda:99'"),
    ],
)
def test_errors_come_before_the_directory(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tiny(**changes), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# the command that repeats a run


def parsed(words: list[str]) -> TrainConfig:
    """What the command line makes of it."""
    from scrimp.cli.flags import add_config_flags, apply_flags, parse
    from scrimp.cli.main import Parser

    parser = Parser(prog="scrimp train")
    parser.add_argument("recipe", nargs="?")
    add_config_flags(parser, TrainConfig())
    namespace = parse(parser, words)
    base = RECIPES[namespace.recipe or "digits"]()
    return apply_flags(namespace, base)


@pytest.mark.parametrize(
    "config",
    [
        *(recipe() for recipe in RECIPES.values()),
        tiny(deterministic=True, clip_norm=2, wandb="two words", flip="random", num_epochs=0.3),
        RECIPES["text"]().replace(clip_norm=None, threads=3, model_args={"depth": 2, "width": 64, "num_heads": 4}),
        tiny(model="mine:make", model_args={"a": 1, "b": 0.5, "c": True, "d": "text", "e": "5", "f": "a b", "g": "no"}),
        tiny(model="mine:make", model_args={"a": "true", "b": '"quoted"', "c": "", "d": "null", "e": "[1]"}),
        RECIPES["digits"]().replace(model="resnet9"),  # the same model_args as another model's are given again
        RECIPES["digits"]().replace(model="resnet9", model_args={}),
        RECIPES["cifar10-small"]().replace(model="resnet9"),  # whitened and the like, which another model is not
        RECIPES["cifar10-small"]().with_model("resnet9"),
    ],
)  # fmt: skip
def test_the_command_repeats_the_run(config: TrainConfig) -> None:
    words = shlex.split(command_line(config))
    assert words[:2] == ["scrimp", "train"]
    assert parsed(words[2:]) == config


def test_the_command_of_an_own_config_starts_from_the_default_recipe() -> None:
    config = TrainConfig(seed=5, model="resnet9", model_args={"width": 8})
    words = shlex.split(command_line(config))
    assert parsed(words[2:]) == config.replace(recipe="digits")


def test_the_command_is_short() -> None:
    assert command_line(RECIPES["digits"]()) == "scrimp train digits"
    assert command_line(RECIPES["text"]().replace(seed=1)) == "scrimp train text --seed 1"
    own = RECIPES["cifar10-small"]().with_model("mine:make")
    assert command_line(own) == "scrimp train cifar10-small --model mine:make"
    assert not own.whiten
    assert own.model_args == {}


# the trained model


def test_a_run_can_be_loaded_and_used(tmp_path: Path) -> None:
    from scrimp.train import load_run
    from scrimp.train.data import load_dataset

    done = run(tiny(num_epochs=1), out=tmp_path / "run")
    trained = load_run(done.run_dir)
    data = load_dataset("digits")
    assert data.test.targets is not None
    with torch.no_grad():
        outputs = trained.model(trained.prepare(data.test.inputs))
    assert done.summary is not None
    accuracy = (outputs.argmax(dim=1) == data.test.targets).double().mean().item()
    assert accuracy == pytest.approx(done.summary.test_accuracy, abs=1e-9)
    assert trained.classes == data.classes
    assert not trained.model.training


def test_only_a_finished_run_can_be_loaded(tmp_path: Path) -> None:
    from scrimp.errors import DataNotFoundError, FormatError
    from scrimp.train import load_run

    run_until(tiny(num_epochs=1), tmp_path / "run", 3)
    with pytest.raises(DataNotFoundError, match="has not finished"):
        load_run(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(FormatError, match="damaged"):
        load_run(tmp_path / "run")
