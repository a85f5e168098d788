"""The store: what comes back is what went in, bit by bit where promised, or an error that says what is broken."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.reference.rounding_codec import Rounding
from tests.reference.stores import (
    adamw,
    bits,
    files_in,
    make_net,
    run_of,
    sgd,
    sizes_in,
    state_bits,
    the_file,
    train_steps,
)
from torch import nn

from scrimp import StructureChange, apply_structure_change
from scrimp.checkpoints import CheckpointStore, Encoded, Group, Lossless
from scrimp.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError, FormatError


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.mark.parametrize("make_optimizer", [sgd, adamw])
def test_training_goes_on_bit_by_bit(store: CheckpointStore, make_optimizer: Callable[..., Any]) -> None:
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


def test_moments_of_channels_last_weights_stay_channels_last(store: CheckpointStore) -> None:
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


def test_special_values_keep_their_bits(store: CheckpointStore) -> None:
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


def test_tied_weights_are_stored_once_and_stay_tied(store: CheckpointStore) -> None:
    net = Tied()
    report = store.save(0, model=net)
    assert report.raw_bytes == 6 * 4 * 4
    again = Tied()
    store.restore(model=again)
    assert torch.equal(again.embed.weight, net.embed.weight)
    assert again.head.weight is again.embed.weight


def test_views_of_one_storage_can_be_saved(store: CheckpointStore) -> None:
    base = torch.arange(6.0)
    store.save(0, extra={"all": base, "part": base[2:4], "matrix": base.view(2, 3)})
    extra = store.restore()
    assert extra["part"].tolist() == [2.0, 3.0]
    assert extra["matrix"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_report_tells_the_sizes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, codec=Rounding())
    net = make_net()
    optimizer = adamw(net)
    train_steps(net, optimizer, 1)
    for step in (7, 8):
        report = store.save(step, model=net, optimizer=optimizer, extra={"b": torch.zeros(10, dtype=torch.int64)})
    tensors = [*net.state_dict().values(), *(t for slots in optimizer.state.values() for t in slots.values())]
    assert report.raw_bytes == sum(t.numel() * t.element_size() for t in tensors) + 80
    assert (report.step, report.base_step, report.is_keyframe) == (8, 7, False)
    assert report.history_bytes == the_file(store, 8, "delta").stat().st_size
    assert report.exact_bytes == the_file(store, 8, "exact").stat().st_size
    assert report.stored_bytes == report.history_bytes + report.exact_bytes
    assert report.num_weights == sum(p.numel() for p in net.parameters())
    assert report.seconds >= report.held_seconds > 0
    assert {t.path for t in report.tensors} >= {"model/4.weight", "optimizer/state/4/exp_avg", "small float32"}
    by_role = report.by_role()
    assert by_role["first moment"]["raw_bytes"] == 4 * report.num_weights
    assert sum(one["raw_bytes"] for one in by_role.values()) == report.raw_bytes
    assert json.loads(json.dumps(report.to_dict()))["history_bytes"] == report.history_bytes

    again = store.describe()
    for key in ("step", "raw_bytes", "history_bytes", "exact_bytes", "num_weights", "base_step", "is_keyframe"):
        assert getattr(again, key) == getattr(report, key)
    assert [t.path for t in store.tensors(8)] == [t.path for t in report.tensors]
    assert [t.error.coded_bytes for t in store.tensors(8)] == [t.error.coded_bytes for t in report.tensors]

    whole = store.report()
    assert (whole.num_checkpoints, whole.num_keyframes, whole.num_exact_copies) == (2, 1, 1)
    assert whole.stored_bytes == sizes_in(tmp_path)
    assert whole.raw_bytes == 2 * report.raw_bytes
    assert whole.ratio == whole.raw_bytes / whole.stored_bytes
    assert whole.delta_ratio == report.raw_bytes / report.history_bytes
    assert whole.raw_bytes_per_weight == report.raw_bytes / report.num_weights
    with pytest.raises(CheckpointNotFoundError):
        store.describe(9)


def test_an_empty_store_has_a_report(store: CheckpointStore) -> None:
    report = store.report()
    assert (report.num_checkpoints, report.stored_bytes, report.ratio, report.delta_ratio) == (0, 0, None, None)
    assert report.to_dict()["num_keyframes"] == 0


def test_what_was_loaded_does_not_depend_on_the_file(store: CheckpointStore) -> None:
    store.save(0, extra={"x": torch.ones(5000)})
    x = store.restore()["x"]
    path = the_file(store, 0, "key")
    path.write_bytes(bytes(path.stat().st_size))
    assert x.sum() == 5000


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [9]), (2, [7, 9]), (3, [5, 7, 9]), (None, [1, 3, 5, 7, 9])])
def test_the_newest_are_kept(tmp_path: Path, keep_last: int | None, kept: list[int]) -> None:
    store = CheckpointStore(tmp_path, keep_last=keep_last)
    for step in (1, 3, 5, 7, 9):
        store.save(step, extra={"step": step})
    assert store.steps() == store.verify() == kept
    assert [store.load(step)["extra"]["step"] for step in kept] == kept
    assert len(list(tmp_path.iterdir())) == 2 * len(kept)  # a manifest and its file


def test_a_step_can_be_saved_again(store: CheckpointStore) -> None:
    store.save(1, extra={"x": "old"})
    store.save(1, extra={"x": "new"})
    assert store.steps() == [1]
    assert store.restore() == {"x": "new"}


def test_steps_are_numbers_and_other_files_are_left_alone(store: CheckpointStore) -> None:
    folder = Path(store.path)
    folder.mkdir(parents=True)
    others = [
        "notes.txt",
        "step-1.json",
        "step-000000001.json.bak",
        ".step-000000001.scrimp.x.tmp",
        "model.safetensors",
    ]
    for name in others:
        (folder / name).write_text("mine")
    for step in (2, 10, 12_345_678_901):
        store.save(step)
    assert store.steps() == [2, 10, 12_345_678_901]
    assert store.collect_garbage(grace_seconds=0) == []
    assert {name for name, content in files_in(folder).items() if content == b"mine"} == set(others)


def test_debris_of_a_killed_writer_goes_with_the_next_save(store: CheckpointStore) -> None:
    folder = Path(store.path)
    folder.mkdir(parents=True)
    for name in (".scrimp-0123abcd.tmp", ".step-000000001.json.0123abcd.tmp", "step-000000001.key-0123abcd.scrimp"):
        (folder / name).write_bytes(b"half")
    store.save(2)
    assert len(files_in(folder)) == 2
    assert store.steps() == [2]


def test_delete(store: CheckpointStore) -> None:
    store.save(1)
    store.save(2)
    store.delete(2)
    assert store.steps() == [1]
    assert len(files_in(store.path)) == 2
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint of step 2 .* there are \[1\]"):
        store.delete(2)


def test_what_is_not_there(store: CheckpointStore) -> None:
    assert store.steps() == store.verify() == []
    with pytest.raises(CheckpointNotFoundError, match=store.path):
        store.restore()
    store.save(4)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*; there are \[4\]"):
        store.load(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_last": 0}, "keep_last is 0"), ({"exact_tail": -1}, "exact_tail is -1"),
        ({"keyframe_every": 0}, "keyframe_every is 0"), ({"keep_every": 10}, "give keep_last as well"),
        ({"keep_every": 0, "keep_last": 2}, "keep_every is 0"),
    ],
)  # fmt: skip
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CheckpointStore("x", **settings)
    with pytest.raises(ConfigError, match="step is -1"):
        CheckpointStore("x").save(-1)
    assert not Path("x").exists()


def test_what_cannot_be_stored_changes_nothing(store: CheckpointStore) -> None:
    store.save(1, extra={"x": 1})
    before = files_in(store.path)
    with pytest.raises(ConfigError, match="'extra/plan/rule': it is a set"):
        store.save(2, extra={"plan": {"rule": {1}}})
    assert files_in(store.path) == before


class Bomb:
    fired = False

    def __setstate__(self, state: Any) -> None:
        Bomb.fired = True


def test_a_pickle_is_refused_and_not_run(store: CheckpointStore, tmp_path: Path) -> None:
    pickled = tmp_path / "model.pt"
    bomb = Bomb()
    bomb.x = 1  # type: ignore[attr-defined]
    for legacy in (True, False):
        torch.save({"model": bomb}, pickled, _use_new_zipfile_serialization=not legacy)
        store.save(1)
        the_file(store, 1, "key").write_bytes(pickled.read_bytes())
        with pytest.raises(CorruptCheckpointError, match="does not begin as a checkpoint does"):
            store.restore(model=make_net())
    assert not Bomb.fired
    torch.load(pickled, weights_only=False)
    assert Bomb.fired  # the guard of this test can fail


# history


@pytest.fixture
def lossy(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "lossy", codec=Rounding())


def test_the_newest_is_exact_and_history_is_what_the_codec_made_of_it(lossy: CheckpointStore) -> None:
    net = make_net()
    former = expected = None  # the weight as a closed loop reconstructs it, by hand
    for step in range(4):
        weight = net[4].weight.detach().clone()
        codes = None if expected is None else ((weight - expected) / Rounding().grid).round()
        expected = weight if codes is None else expected + codes * Rounding().grid
        lossy.save(step, model=net)
        assert torch.equal(lossy.load(step)["model"]["4.weight"], weight)
        of_history = lossy.load(step, only="model/4.weight", history=True)["model"]["4.weight"]
        assert torch.equal(of_history, expected)  # what will be left of it
        if step:
            assert torch.equal(lossy.load(step - 1)["model"]["4.weight"], former)
        former = expected
        with torch.no_grad():
            net[4].weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)))
    assert not torch.equal(lossy.load(2)["model"]["4.weight"], lossy.load(3)["model"]["4.weight"])
    assert [lossy.describe(step).is_exact for step in range(4)] == [True, False, False, True]


@pytest.mark.parametrize(("exact_tail", "exact"), [(0, []), (1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_tail_is_exact(tmp_path: Path, exact_tail: int, exact: list[int]) -> None:
    store = CheckpointStore(tmp_path, codec=Rounding(), exact_tail=exact_tail)
    true = run_of(store, [1, 2, 3, 4, 5])
    assert [step for step in store.steps() if store.describe(step).is_exact] == exact
    assert [step for step in store.steps() if state_bits(store, step) == true[step]] == exact
    assert sum(".exact-" in name for name in files_in(tmp_path)) == len(exact)
    assert store.verify() == [1, 2, 3, 4, 5]


def test_the_tail_does_not_matter_to_history(tmp_path: Path) -> None:
    stores = [CheckpointStore(tmp_path / str(tail), codec=Rounding(), exact_tail=tail) for tail in (0, 1)]
    for store in stores:
        run_of(store, [1, 2, 3, 4])
    for step in (1, 2, 3):
        assert state_bits(stores[0], step) == state_bits(stores[1], step)


def test_a_store_opened_anew_goes_on_as_if_it_had_not_been_closed(tmp_path: Path) -> None:
    one = CheckpointStore(tmp_path / "one", codec=Rounding())
    run_of(one, [1, 2, 3, 4])
    net = make_net()
    optimizer = adamw(net)
    for step in (1, 2, 3, 4):
        train_steps(net, optimizer, 3, seed=step)
        reopened = CheckpointStore(tmp_path / "many", codec=Rounding())
        reopened.save(step, model=net, optimizer=optimizer, extra={"at": step})

    def stored(folder: str) -> dict[str, bytes]:
        return {name: content for name, content in files_in(tmp_path / folder).items() if name.endswith(".scrimp")}

    assert stored("one") == stored("many")


def test_lossless_keeps_every_bit_of_every_step_and_no_copies(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, codec=Lossless())
    true = run_of(store, [1, 2, 3])
    assert {step: state_bits(store, step) for step in (1, 2, 3)} == true
    assert not any(".exact-" in name for name in files_in(tmp_path))


def test_keyframes_come_when_asked_for(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, codec=Rounding(), keyframe_every=3)
    run_of(store, list(range(1, 8)))
    assert [step for step in store.steps() if store.describe(step).is_keyframe] == [1, 4, 7]
    for step in (1, 2, 3):  # nothing before a keyframe is needed behind it
        for path in Path(store.path).glob(f"step-{step:09d}*"):
            path.unlink()
    assert store.verify() == [4, 5, 6, 7]


class Wasteful(Rounding):
    """Differences take more bytes than the whole."""

    def encode(self, group: Group, base: Any, *, previous: Any = None) -> Encoded:
        encoded = super().encode(group, base, previous=previous)
        return replace(encoded, payload=encoded.payload + bytes(10**5)) if base else encoded


def test_a_difference_that_is_larger_than_the_whole_becomes_a_keyframe(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, codec=Wasteful(), exact_tail=0)
    run_of(store, [1, 2])
    report = store.report()
    assert report.num_keyframes == 2
    assert report.stored_bytes < 10**5


def test_a_state_may_change_its_structure(lossy: CheckpointStore) -> None:
    """Optimizer state that comes later, parts that come and go, another width."""
    net = make_net()
    optimizer = adamw(net)
    lossy.save(1, model=net, optimizer=optimizer)
    train_steps(net, optimizer, 2)
    lossy.save(2, model=net, optimizer=optimizer, extra={"average": torch.ones(100, 100)})
    lossy.save(3, model=net)
    wide = make_net(width=8)
    lossy.save(4, model=wide, extra={"average": torch.ones(100, 100)})
    lossy.save(5, model=wide)
    assert lossy.verify() == [1, 2, 3, 4, 5]
    assert [set(lossy.load(step)) for step in (2, 3)] == [
        {"step", "extra", "model", "optimizer", "optimizer_class"}, {"step", "extra", "model"}
    ]  # fmt: skip
    assert lossy.load(4)["model"]["4.weight"].shape == (5, 128)
    assert torch.equal(lossy.restore(4)["average"], torch.ones(100, 100))


def test_channels_removed_on_the_way_are_a_difference_too(lossy: CheckpointStore) -> None:
    net = make_net(width=8)
    optimizer = adamw(net)
    train_steps(net, optimizer, 2)
    lossy.save(1, model=net, optimizer=optimizer)
    kept = torch.tensor([0, 2, 3, 7])
    flat = (kept[:, None] * 16 + torch.arange(16)).flatten()
    change = StructureChange(
        {
            "0.weight": ((0, kept),), "0.bias": ((0, kept),), "4.weight": ((1, flat),),
            **{f"1.{name}": ((0, kept),) for name in ("weight", "bias", "running_mean", "running_var")},
        }
    )  # fmt: skip
    apply_structure_change(change, model=net, optimizer=optimizer)
    without = CheckpointStore(Path(lossy.path).parent / "without", codec=Rounding())
    for name in files_in(lossy.path):
        Path(without.path).mkdir(exist_ok=True)
        (Path(without.path) / name).write_bytes((Path(lossy.path) / name).read_bytes())
    told = lossy.save(2, model=net, optimizer=optimizer, change=change)
    untold = without.save(2, model=net, optimizer=optimizer)
    assert told.base_step == 1
    assert told.history_bytes < 0.8 * untold.history_bytes
    net_weight = net[4].weight.detach().clone()
    lossy.save(3, model=net, optimizer=optimizer)
    # nothing was trained: the difference is zero, and the slices are right
    assert torch.equal(CheckpointStore(lossy.path, codec=Rounding()).load(2)["model"]["4.weight"], net_weight)
    assert lossy.load(2)["model"]["0.weight"].is_contiguous(memory_format=torch.channels_last)
    lossy.delete(1)
    assert torch.equal(lossy.load(2)["model"]["4.weight"], net_weight)
    assert lossy.verify() == [2, 3]


# a part of a state


def test_one_tensor_or_part_is_decoded_without_the_rest(
    lossy: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_of(lossy, [1, 2, 3])
    whole = lossy.load(2)
    decoded: list[Any] = []
    decode = Rounding.decode

    def noted(self: Rounding, payload: bytes, base: Any, *, slots: Any = None) -> Any:
        decoded.append(slots)
        return decode(self, payload, base, slots=slots)

    monkeypatch.setattr(Rounding, "decode", noted)
    part = lossy.load(2, only="model/4.weight")
    assert bits(part) == bits(
        {"step": 2, "model": {"4.weight": whole["model"]["4.weight"]}, "optimizer_class": "AdamW"}
    )
    assert decoded == [["weight"], ["weight"]]  # two hops, nothing else
    model = lossy.load(2, only=["model"])
    assert bits(model["model"]) == bits(whole["model"])
    assert set(model) == {"step", "model", "optimizer_class"}
    moments = lossy.load(2, only="optimizer/state/4")["optimizer"]["state"]
    assert bits(moments) == bits({4: whole["optimizer"]["state"][4]})
    with pytest.raises(ConfigError, match=r"holds no tensor under 'modle'; it has model/0\.weight"):
        lossy.load(2, only="modle")


# what is let go of


def test_deleting_changes_no_bit_of_the_others(tmp_path: Path) -> None:
    for victim in (1, 3, 6):
        store = CheckpointStore(tmp_path / str(victim), codec=Rounding())
        run_of(store, [1, 2, 3, 4, 5, 6])
        before = {step: state_bits(store, step) for step in store.steps()}
        store.delete(victim)
        assert store.verify() == [step for step in range(1, 7) if step != victim]
        assert {step: state_bits(store, step) for step in store.steps()} == {
            step: state for step, state in before.items() if step != victim
        }
        assert not [name for name in files_in(store.path) if f"step-{victim:09d}" in name]


def test_deleting_all_but_one_ends_in_a_keyframe_of_bounded_size(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, codec=Rounding(), keep_last=2)
    true = run_of(store, list(range(1, 31)))
    assert store.steps() == store.verify() == [29, 30]
    assert store.describe(29).is_keyframe
    assert store.describe(29).history_bytes < store.describe(29).raw_bytes
    assert state_bits(store, 30) == true[30]


def test_a_merged_chain_decodes_parts_too(lossy: CheckpointStore) -> None:
    run_of(lossy, [1, 2, 3, 4])
    before = lossy.load(3)
    for step in (2, 1):
        lossy.delete(step)
    assert bits(lossy.load(3, only="optimizer")["optimizer"]["state"]) == bits(before["optimizer"]["state"])
    assert bits(lossy.load(3, only="model/4.weight")["model"]["4.weight"]) == bits(before["model"]["4.weight"])


def test_what_is_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, codec=Rounding(), keep_last=2, keep_every=4)
    net = make_net()
    for step in range(1, 12):
        store.save(step, model=net)
        if step == 3:
            store.pin(2)
    assert store.steps() == store.verify() == [2, 4, 8, 10, 11]
    assert store.describe(2).is_pinned
    store.pin(2, pinned=False)
    store.save(12, model=net)
    assert store.steps() == [4, 8, 11, 12]


def test_garbage_is_what_no_manifest_names(lossy: CheckpointStore) -> None:
    run_of(lossy, [1, 2])
    debris = Path(lossy.path) / "step-000000009.delta-00.scrimp"
    debris.write_bytes(b"x")
    assert lossy.collect_garbage() == []  # it may be another writer's
    assert lossy.collect_garbage(grace_seconds=0) == [debris.name]
    assert lossy.verify() == [1, 2]


def test_a_step_in_the_middle_can_be_saved_again(lossy: CheckpointStore) -> None:
    run_of(lossy, [1, 2, 3])
    before = state_bits(lossy, 3)
    net = make_net(seed=5)
    lossy.save(2, model=net)
    assert state_bits(lossy, 3) == before
    assert bits(lossy.load(2)["model"]) == bits(net.state_dict())
    lossy.save(4, model=net)
    assert lossy.steps() == lossy.verify() == [1, 2, 3, 4]


# the beginning as a function


def test_the_first_checkpoint_can_be_a_function(tmp_path: Path) -> None:
    def init() -> nn.Module:
        return make_net(seed=3, width=16)

    store = CheckpointStore(tmp_path, codec=Lossless(), init=init)
    net = init()
    first = store.save(0, model=net)
    assert first.is_keyframe
    assert first.history_bytes < 0.6 * first.raw_bytes  # an exact difference of zeros
    with torch.no_grad():
        net[4].weight.add_(0.01)
    store.save(1, model=net)
    again = CheckpointStore(tmp_path, codec=Lossless(), init=init)
    assert bits(again.load(1)["model"]) == bits(net.state_dict())
    assert bits(again.load(0)["model"]) == bits(init().state_dict())
    with pytest.raises(CorruptCheckpointError, match="begins with an init function; give it"):
        CheckpointStore(tmp_path).load(1)
    with pytest.raises(CorruptCheckpointError, match="makes other weights"):
        CheckpointStore(tmp_path, init=lambda: make_net(seed=4, width=16)).load(1)
    again.delete(0)
    assert bits(again.load(1)["model"]) == bits(net.state_dict())


def test_a_codec_of_ones_own_has_to_be_given_again(lossy: CheckpointStore) -> None:
    run_of(lossy, [1, 2])
    with pytest.raises(FormatError, match="stored by the codec 'rounding', which is none of ours"):
        CheckpointStore(lossy.path).load(1)
    assert CheckpointStore(lossy.path).load(2)["step"] == 2  # the exact copy needs no codec
