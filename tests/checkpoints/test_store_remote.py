"""A store on an fsspec URL: the same, but for the lock; the manifest comes last."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.reference.rounding_codec import Rounding
from tests.reference.stores import check_one_on_disk, make_net, run_of, state_bits

from scrimp.checkpoints import CheckpointStore
from scrimp.checkpoints import files as files_module
from scrimp.errors import CheckpointNotFoundError, CorruptCheckpointError, MissingDependencyError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def url() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    yield "memory://bucket/run"
    memory.store.clear()


def names(url: str) -> list[str]:
    fs, root = fsspec.core.url_to_fs(url)
    return sorted(path.rpartition("/")[2] for path in fs.find(root))


def test_a_store_in_memory_is_one_on_disk(url: str, tmp_path: Path) -> None:
    remote = check_one_on_disk(url, tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint of step 9 in memory://bucket/run"):
        remote.load(9)


def test_a_url_of_local_files(tmp_path: Path) -> None:
    store = CheckpointStore(f"file://{tmp_path}/deep/store", codec=Rounding(), keep_last=2)
    true = run_of(store, [1, 2, 3])
    assert state_bits(CheckpointStore(tmp_path / "deep/store", codec=Rounding()), 3) == true[3]
    assert store.verify() == [2, 3]


@pytest.mark.parametrize("fail_at", [1, 2])
@pytest.mark.parametrize("call", ["put_file", "pipe_file", "rm_file"])
def test_a_connection_that_breaks_at_any_request_loses_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch, call: str, fail_at: int
) -> None:
    true = run_of(CheckpointStore(url, codec=Rounding()), [1, 2])
    fs = type(fsspec.filesystem("memory"))
    whole = getattr(fs, call)
    count = 0

    def broken(self: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == fail_at:
            raise OSError("connection lost")
        return whole(self, *arguments, **more)

    store = CheckpointStore(url, codec=Rounding())
    with monkeypatch.context() as patch:
        patch.setattr(fs, call, broken)
        try:
            store.save(3, model=make_net())
        except OSError as error:
            assert str(error) == "connection lost"  # noqa: PT017 - not every save makes that many requests
    again = CheckpointStore(url, codec=Rounding())
    assert set(again.verify()) >= {1, 2}
    if 3 not in again.steps():
        assert state_bits(again, 2) == true[2]
    CheckpointStore(url, codec=Rounding()).save(4, model=make_net())
    store = CheckpointStore(url, codec=Rounding())
    store.collect_garbage(grace_seconds=-1)
    named = {file.name for step in store.steps() for file in store._catalogue.manifest(step).files}
    assert {name for name in names(url) if name.endswith(".scrimp")} == named


def test_what_was_altered_there_is_found(url: str) -> None:
    store = CheckpointStore(url, codec=Rounding())
    run_of(store, [1, 2])
    fs, root = fsspec.core.url_to_fs(url)
    (name,) = (name for name in names(url) if ".exact-" in name)
    whole = fs.cat_file(f"{root}/{name}")
    fs.pipe_file(f"{root}/{name}", whole[:-7])
    with pytest.raises(CorruptCheckpointError, match=r"memory://bucket/run/step-000000002\.exact-.*truncated"):
        store.load()


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "scrimp\[fsspec\]"'):
        files_module.open_files("s3://bucket/run")
