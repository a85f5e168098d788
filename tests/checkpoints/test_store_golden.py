"""Files of every version of the format that was ever released are read for ever, to the same bits."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.reference import golden_store

from scrimp.checkpoints import CheckpointStore

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.glob("store_v*"))


def test_there_is_a_store_of_each_version() -> None:
    assert VERSIONS == ["store_v1"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_store_reads_to_the_same_bits(version: str) -> None:
    expected = json.loads((GOLDEN / version / "expected.txt").read_text())
    store = CheckpointStore(GOLDEN / version)
    assert store.verify() == [int(step) for step in expected] == [10, 30, 40, 50]
    assert {str(step): golden_store.digest(store.load(step)) for step in store.steps()} == expected
    assert [store.describe(step).is_exact for step in store.steps()] == [True, False, False, True]
    assert store.describe(40).base_step == 30
    assert store.load(40)["model"]["3.weight"].shape == (66, 32)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_store_can_be_gone_on_with(version: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / version, tmp_path / "store")
    store = CheckpointStore(tmp_path / "store")
    net = golden_store.make_net()
    store.save(60, model=net)
    assert store.verify() == [10, 30, 40, 50, 60]
    assert torch.equal(store.load()["model"]["3.weight"], net[3].weight)  # type: ignore[index]


def test_the_bits_are_looked_at() -> None:
    expected = json.loads((GOLDEN / "store_v1" / "expected.txt").read_text())
    state = CheckpointStore(GOLDEN / "store_v1").load(50)
    assert golden_store.digest(state) == expected["50"]
    state["model"]["3.weight"][0, 0] += 1e-6
    assert golden_store.digest(state) != expected["50"]
