"""Exact checkpoints: what comes back is what went in, bit by bit, or an error that says what is broken."""

import errno
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scrimp._core import atomic_files
from scrimp.checkpoints import ExactCheckpoints
from scrimp.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError, FormatError


def make_net(seed: int = 0, width: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 5)
        )
    return net.to(memory_format=torch.channels_last)


def train_steps(net: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        loss = F.cross_entropy(net(torch.randn(2, 3, 4, 4, generator=draw)), torch.tensor([0, 3]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01)


def bits(state: Any) -> Any:
    """A nested state with its tensors as (dtype, shape, stride, bytes)."""
    if isinstance(state, Tensor):
        raw = state.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if state.numel() else b""
        return state.dtype, tuple(state.shape), state.stride(), raw
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [bits(value) for value in state]
    return state


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def store(tmp_path: Path) -> ExactCheckpoints:
    return ExactCheckpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize("make_optimizer", [sgd, adamw])
def test_training_goes_on_bit_by_bit(store: ExactCheckpoints, make_optimizer: Callable[..., Any]) -> None:
    net = make_net()
    optimizer = make_optimizer(net)
    train_steps(net, optimizer, 3)
    store.save(3, model=net, optimizer=optimizer, extra={"epoch": 0.5, "seen": [1, (2, None)]})
    saved = bits([net.state_dict(), optimizer.state_dict()])

    again = make_net(seed=9)
    optimizer_again = make_optimizer(again)
    extra = store.restore(model=again, optimizer=optimizer_again)
    assert extra == {"epoch": 0.5, "seen": [1, (2, None)]}
    assert bits([again.state_dict(), optimizer_again.state_dict()]) == saved
    for both in ((net, optimizer), (again, optimizer_again)):
        train_steps(*both, 3, seed=2)
    assert bits(again.state_dict()) == bits(net.state_dict())
    assert bits(optimizer_again.state_dict()) == bits(optimizer.state_dict())


def test_moments_of_channels_last_weights_stay_channels_last(store: ExactCheckpoints) -> None:
    net = make_net()
    optimizer = sgd(net)
    train_steps(net, optimizer, 1)
    store.save(1, model=net, optimizer=optimizer)
    again = make_net(seed=1)
    optimizer_again = sgd(again)
    store.restore(model=again, optimizer=optimizer_again)
    weight = again[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert optimizer_again.state[weight]["momentum_buffer"].stride() == weight.stride() != (27, 9, 3, 1)


def test_special_values_keep_their_bits(store: ExactCheckpoints) -> None:
    patterns = torch.tensor([0x7FC01234, 0x7F800001, -0x80000000, 0x00000001, 0x7F800000], dtype=torch.int32)
    halves = torch.tensor([0x7FC1, -0x8000, 0x7F81], dtype=torch.int16).view(torch.bfloat16)
    store.save(0, extra={"x": patterns.view(torch.float32), "bf16": halves, "nan": math.nan, "zero": -0.0})
    extra = store.restore()
    assert torch.equal(extra["x"].view(torch.int32), patterns)
    assert torch.equal(extra["bf16"].view(torch.int16), halves.view(torch.int16))
    assert math.isnan(extra["nan"])
    assert math.copysign(1, extra["zero"]) == -1


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_stored_once_and_stay_tied(store: ExactCheckpoints) -> None:
    net = Tied()
    report = store.save(0, model=net)
    assert report.raw_bytes == 6 * 4 * 4
    again = Tied()
    store.restore(model=again)
    assert torch.equal(again.embed.weight, net.embed.weight)
    assert again.head.weight is again.embed.weight


def test_views_of_one_storage_can_be_saved(store: ExactCheckpoints) -> None:
    base = torch.arange(6.0)
    store.save(0, extra={"all": base, "part": base[2:4], "matrix": base.view(2, 3)})
    extra = store.restore()
    assert extra["part"].tolist() == [2.0, 3.0]
    assert extra["matrix"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_report_tells_the_sizes(store: ExactCheckpoints) -> None:
    report = store.save(7, extra={"a": torch.zeros(1000), "b": torch.zeros(10, dtype=torch.int64)})
    assert report.step == 7
    assert report.raw_bytes == 4080
    assert report.stored_bytes == report.path.stat().st_size > 4080
    assert report.save_seconds > 0


def test_stored_tells_the_sizes_again(store: ExactCheckpoints) -> None:
    report = store.save(7, extra={"a": torch.zeros(1000)})
    again = store.stored(7)
    assert (again.step, again.path, again.raw_bytes, again.stored_bytes, again.save_seconds) == (
        7, report.path, 4000, report.stored_bytes, 0.0
    )  # fmt: skip
    with pytest.raises(CheckpointNotFoundError):
        store.stored(8)


def test_any_reader_of_safetensors_can_open_one(store: ExactCheckpoints) -> None:
    net = make_net()
    tensors = safetensors.torch.load_file(store.save(0, model=net).path)
    assert torch.equal(tensors["model/4.weight"], net[4].weight)


def test_what_was_loaded_does_not_depend_on_the_file(store: ExactCheckpoints) -> None:
    path = store.save(0, extra={"x": torch.ones(5000)}).path
    x = store.restore()["x"]
    with path.open("r+b") as file:
        file.seek(-20_000, 2)
        file.write(bytes(20_000))
    assert x.sum() == 5000


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [9]), (2, [7, 9]), (3, [5, 7, 9]), (None, [1, 3, 5, 7, 9])])
def test_the_newest_are_kept(tmp_path: Path, keep_last: int | None, kept: list[int]) -> None:
    store = ExactCheckpoints(tmp_path, keep_last=keep_last)
    for step in (1, 3, 5, 7, 9):
        store.save(step, extra={"step": step})
    assert store.steps() == store.verify() == kept
    assert [store.load(step)["extra"]["step"] for step in kept] == kept
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_a_step_can_be_saved_again(store: ExactCheckpoints) -> None:
    store.save(1, extra={"x": "old"})
    store.save(1, extra={"x": "new"})
    assert store.steps() == [1]
    assert store.restore() == {"x": "new"}


def test_steps_are_numbers_and_other_files_are_left_alone(store: ExactCheckpoints) -> None:
    store.path.mkdir(parents=True)
    others = ["notes.txt", "step-1.safetensors", "step-000000001.safetensors.bak", ".step-000000001.safetensors.x.tmp"]
    for name in others:
        (store.path / name).write_text("mine")
    for step in (2, 10, 12_345_678_901):
        store.save(step)
    assert store.steps() == [10, 12_345_678_901]
    assert {name for name, content in files_in(store.path).items() if content == b"mine"} == set(others)


def test_debris_of_a_killed_writer_goes_with_the_next_save(store: ExactCheckpoints) -> None:
    store.path.mkdir(parents=True)
    (store.path / ".step-000000001.safetensors.0123abcd.tmp").write_bytes(b"half")
    store.save(2)
    assert [path.name for path in store.path.iterdir()] == ["step-000000002.safetensors"]


def test_delete(store: ExactCheckpoints) -> None:
    store.save(1)
    store.save(2)
    store.delete(2)
    assert store.steps() == [1]
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint of step 2 .* there are \[1\]"):
        store.delete(2)


def test_what_is_not_there(store: ExactCheckpoints) -> None:
    assert store.steps() == store.verify() == []
    with pytest.raises(CheckpointNotFoundError, match=str(store.path)):
        store.restore()
    store.save(4)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*; there are \[4\]"):
        store.load(3)


def test_impossible_settings() -> None:
    with pytest.raises(ConfigError, match="keep_last is 0"):
        ExactCheckpoints("x", keep_last=0)
    with pytest.raises(ConfigError, match="step is -1"):
        ExactCheckpoints("x").save(-1)
    assert not Path("x").exists()


def test_what_cannot_be_stored_changes_nothing(store: ExactCheckpoints) -> None:
    store.save(1, extra={"x": 1})
    before = files_in(store.path)
    with pytest.raises(ConfigError, match="'extra/plan/rule': it is a set"):
        store.save(2, extra={"plan": {"rule": {1}}})
    assert files_in(store.path) == before


# crashes while writing


class FullDisk:
    """A file that takes ``room`` bytes and then has no space left."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        if len(data) <= self.room:
            return self.file.write(data)
        self.file.write(data[: self.room])
        self.file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("room", [0, 1, 500, 4000])
def test_a_full_disk_leaves_the_former_checkpoints_and_no_debris(
    store: ExactCheckpoints, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    store.keep_last = 1
    store.save(1, extra={"x": torch.ones(1000)})
    before = files_in(store.path)
    open_file = atomic_files.os.fdopen
    monkeypatch.setattr(atomic_files.os, "fdopen", lambda *args: FullDisk(open_file(*args), room))
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            store.save(step, extra={"x": torch.zeros(1000)})
    monkeypatch.undo()
    assert files_in(store.path) == before
    assert store.restore()["x"].sum() == 1000


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_a_failure_at_the_end_of_writing_does_the_same(
    store: ExactCheckpoints, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    store.save(1, extra={"x": 1})
    before = files_in(store.path)

    def fail(*args: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(atomic_files.os, moment, fail)
        with pytest.raises(type(error)):
            store.save(2, extra={"x": 2})
    assert files_in(store.path) == before


# broken files: an error or the same state, never another one


@pytest.fixture
def small(store: ExactCheckpoints) -> Path:
    """A file with every kind of entry: dense, channels_last, empty, bfloat16, tied, nested."""
    tied = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    extra = {
        "conv": torch.arange(16.0).reshape(2, 2, 2, 2).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 5), "half": torch.ones(3, dtype=torch.bfloat16), "flag": torch.tensor(True),
        "a": tied, "b": [tied, {"n": 3, "t": "text"}],
    }  # fmt: skip
    return store.save(5, extra=extra).path


def outcome(store: ExactCheckpoints) -> Any:
    """The bits of the state, or the name of the error."""
    try:
        return bits(store.load(5))
    except FormatError as error:
        return type(error).__name__


def test_truncation_at_any_length_is_found(store: ExactCheckpoints, small: Path) -> None:
    whole = small.read_bytes()
    for length in (*range(0, len(whole), 3), len(whole) - 1):
        small.write_bytes(whole[:length])
        assert outcome(store) == "CorruptCheckpointError", length
    small.write_bytes(whole + b"\0")
    assert outcome(store) == "CorruptCheckpointError"


def test_a_flipped_bit_anywhere_is_found_or_harmless(store: ExactCheckpoints, small: Path) -> None:
    whole = small.read_bytes()
    good = outcome(store)
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    harmless = []
    for position in range(len(whole)):
        for bit in {position % 8} if position < header_end else range(0, 8, 3):
            altered = bytearray(whole)
            altered[position] ^= 1 << bit
            small.write_bytes(altered)
            found = outcome(store)
            assert isinstance(found, str) or found == good, (position, bit, altered[max(0, position - 20) : position])
            if found == good:
                harmless.append(position)
    # torch reads every byte but 0 as True, and puts it right in memory
    assert {whole[position] for position in harmless if position >= header_end} <= {1}
    assert len(harmless) < 10


def test_a_broken_structure_is_told_by_the_file(store: ExactCheckpoints, small: Path) -> None:
    whole = small.read_bytes()
    for wrong, message in (
        (b"extra/emptY", "'extra/emptY' does not match"),
        (b"extra/empt\xe9", "not a safetensors file"),
    ):
        small.write_bytes(whole.replace(b'"extra/empty":', b'"' + wrong + b'":'))
        with pytest.raises(FormatError, match=message):
            store.load()


def test_a_changed_shape_of_an_empty_tensor_is_found(store: ExactCheckpoints, small: Path) -> None:
    whole = small.read_bytes()
    assert whole.count(b'"shape":[0,5]') == 1
    small.write_bytes(whole.replace(b'"shape":[0,5]', b'"shape":[0,4]'))
    with pytest.raises(CorruptCheckpointError, match="'extra/empty' does not match its checksum"):
        store.load()


def test_exchanged_names_are_found(store: ExactCheckpoints) -> None:
    path = store.save(5, extra={"aa": torch.zeros(4), "bb": torch.ones(4)}).path
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    header["extra/aa"], header["extra/bb"] = header["extra/bb"], header["extra/aa"]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    with pytest.raises(CorruptCheckpointError, match="'extra/aa' does not match its checksum"):
        store.load()


def test_verify_names_the_broken_one(store: ExactCheckpoints) -> None:
    store.save(1, extra={"x": torch.ones(3)})
    path = store.save(2, extra={"x": torch.ones(3)}).path
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CorruptCheckpointError, match=r"step-000000002\.safetensors: tensor 'extra/x'"):
        store.verify()
    assert store.restore(1)["x"].tolist() == [1.0, 1.0, 1.0]


def test_foreign_files_are_refused(store: ExactCheckpoints) -> None:
    path = store.save(1).path
    path.write_bytes(safetensors.torch.save({"weight": torch.zeros(3)}, {"format": "pt"}))
    with pytest.raises(FormatError, match=r"not a scrimp checkpoint of a known version \(format 'pt'\)"):
        store.load()


class Bomb:
    fired = False

    def __setstate__(self, state: Any) -> None:
        Bomb.fired = True


def test_a_pickle_is_refused_and_not_run(store: ExactCheckpoints, tmp_path: Path) -> None:
    pickled = tmp_path / "model.pt"
    bomb = Bomb()
    bomb.x = 1  # type: ignore[attr-defined]
    for legacy in (True, False):
        torch.save({"model": bomb}, pickled, _use_new_zipfile_serialization=not legacy)
        store.save(1).path.write_bytes(pickled.read_bytes())
        with pytest.raises(CorruptCheckpointError, match="truncated or not a safetensors file"):
            store.restore(model=make_net())
    assert not Bomb.fired
    torch.load(pickled, weights_only=False)
    assert Bomb.fired  # the guard of this test can fail


# what does not fit


def test_a_missing_part_is_named(store: ExactCheckpoints) -> None:
    net = make_net()
    store.save(3, model=net)
    before = bits(net.state_dict())
    with pytest.raises(ConfigError, match=rf"step 3 in {store.path} was saved without a optimizer"):
        store.restore(model=net, optimizer=sgd(net))
    assert bits(net.state_dict()) == before


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)


def wrong_models() -> dict[str, tuple[nn.Module, nn.Module, str]]:
    """Given, saved, what is said."""
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    return {
        "shape": (plain, nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), r"1.weight is \(2, 3\) float32 in the check"),
        "names": (plain, Renamed(), "0.weight is not in the checkpoint.*and 5 more"),
        "extra part": (plain, nn.Sequential(*plain, nn.Linear(3, 3)), "2.weight is not in the model"),
        "less": (plain, plain[:1], "1.weight is not in the checkpoint"),
        "dtype": (
            plain,
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double()),
            "float64 in the checkpoint and .*32",
        ),
    }


@pytest.mark.parametrize("case", wrong_models())
def test_a_model_that_does_not_fit_is_left_as_it_was(store: ExactCheckpoints, case: str) -> None:
    given, saved, message = wrong_models()[case]
    store.save(8, model=saved)
    before = bits(given.state_dict())
    with pytest.raises(ConfigError, match=rf"the model saved at step 8 in {store.path} does not fit .*{message}"):
        store.restore(model=given)
    assert bits(given.state_dict()) == before


def optimizer_with_steps(net: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_an_optimizer_that_does_not_fit_leaves_all_as_it_was(store: ExactCheckpoints) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    given = optimizer_with_steps(net, sgd(net))
    before = bits([net.state_dict(), given.state_dict()])
    other = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 3))
    one = nn.Linear(3, 3)
    ours = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    wrong = [
        (adamw(ours), "it was AdamW and is now SGD"),
        (sgd(one), r"its parameter groups had \[2\] parameters and now have \[4\]"),
        (sgd(other), r"momentum_buffer of parameter 0 has shape \(2, 3\), its parameter \(3, 3\)"),
    ]
    for (optimizer, message), trained in zip(wrong, (ours, one, other), strict=True):
        store.save(6, model=ours, optimizer=optimizer_with_steps(trained, optimizer))
        with pytest.raises(
            ConfigError, match=rf"the optimizer saved at step 6 in {store.path} .*: {message}.*; nothing"
        ):
            store.restore(model=net, optimizer=given)
        assert bits([net.state_dict(), given.state_dict()]) == before


def test_parameters_in_another_order_are_refused(store: ExactCheckpoints) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    named = list(net.named_parameters())
    store.save(1, model=net, optimizer=torch.optim.SGD(named, lr=0.1))
    with pytest.raises(ConfigError, match=r"a group was of the parameters \['0.weight', .*\] and is now of \['1.bias'"):
        store.restore(model=net, optimizer=torch.optim.SGD(named[::-1], lr=0.1))
    store.restore(model=net, optimizer=torch.optim.SGD(named, lr=0.1))


def test_an_own_load_state_dict_that_complains_is_quoted(store: ExactCheckpoints) -> None:
    class Picky(nn.Linear):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("I am picky")

    store.save(1, model=nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"does not fit the one given: I am picky"):
        store.restore(model=Picky(2, 2))


def test_lazy_modules_can_be_restored(store: ExactCheckpoints) -> None:
    store.save(1, model=nn.Linear(3, 2))
    lazy = nn.LazyLinear(2)
    store.restore(model=lazy)
    assert lazy.weight.shape == (2, 3)
