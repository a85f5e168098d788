import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.reference.idx_files import write_idx

from scrimp.errors import DataError
from scrimp.train.data import cache
from scrimp.train.data.cache import cached, default_cache_dir
from scrimp.train.data.source import Facts

GRAY = np.random.default_rng(0).integers(0, 256, (12, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2] * 4, dtype=np.uint8)


@pytest.fixture
def source(tmp_path):
    write_idx(tmp_path / "set", "train", GRAY, LABELS)
    return tmp_path / "set"


def entries(tmp_path):
    return sorted((tmp_path / "cache" / "data").iterdir())


def same(a, b):
    return a.checksum == b.checksum and all(
        torch.equal(getattr(x, part), getattr(y, part))
        for x, y in ((a.train, b.train), (a.test, b.test))
        for part in ("inputs", "targets")
    )


def decoded_anew(load, source):
    """Load again, and whether that decoded."""
    seen = set()
    dataset = load(source, progress=lambda done, total, what: seen.add(what))
    return dataset, "decoding images" in seen


def test_the_second_time_nothing_is_decoded(tmp_path, load, source):
    first, was_decoded = decoded_anew(load, source)
    assert was_decoded
    second, was_decoded = decoded_anew(load, source)
    assert not was_decoded
    assert same(first, second)
    assert (first.mean, first.std, first.classes, first.source) == (
        second.mean,
        second.std,
        second.classes,
        second.source,
    )
    (entry,) = entries(tmp_path)
    assert sorted(file.name for file in entry.iterdir()) == [
        "content.json",
        "test_inputs.npy",
        "test_targets.npy",
        "train_inputs.npy",
        "train_targets.npy",
    ]


def test_the_cache_follows_the_content_and_not_the_place(tmp_path, load, source):
    first = load(source)
    shutil.copytree(source, tmp_path / "moved")
    moved, was_decoded = decoded_anew(load, tmp_path / "moved")
    assert not was_decoded
    assert same(first, moved)
    assert str(tmp_path / "moved") in moved.source
    images = GRAY.copy()
    images[0, 0, 0] ^= 1
    write_idx(source, "train", images, LABELS)
    changed, was_decoded = decoded_anew(load, source)
    assert was_decoded
    assert changed.checksum != first.checksum


def test_inputs_are_mapped_and_writing_to_them_reaches_no_file(load, source):
    first = load(source)
    before = first.train.inputs.clone()
    first.train.inputs.zero_()
    second, was_decoded = decoded_anew(load, source)
    assert not was_decoded
    assert torch.equal(second.train.inputs, before)


def damage_truncate(folder):
    file = folder / "train_inputs.npy"
    os.truncate(file, file.stat().st_size - 1)


def damage_flip(folder):
    file = folder / "test_targets.npy"
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(content)


def damage_header(folder):
    (folder / "test_inputs.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}")


def damage_empty(folder):
    (folder / "test_inputs.npy").write_bytes(b"")


def damage_no_record(folder):
    (folder / "content.json").unlink()


def damage_half_record(folder):
    os.truncate(folder / "content.json", 40)


def damage_mean(folder):
    record = json.loads((folder / "content.json").read_text())
    record["mean"][0] += 1e-9
    (folder / "content.json").write_text(json.dumps(record))


def damage_version(folder):
    record = json.loads((folder / "content.json").read_text())
    record["format_version"] = 99
    (folder / "content.json").write_text(json.dumps(record))


def damage_missing(folder):
    (folder / "train_targets.npy").unlink()


def damage_swap(folder):
    other = np.load(folder / "train_inputs.npy")
    np.save(folder / "train_inputs.npy", other.transpose(0, 2, 1, 3).copy())


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_found_and_made_again(tmp_path, load, source, damage, caplog):
    first = load(source)
    (entry,) = entries(tmp_path)
    kept = first.train.inputs.clone()
    del first
    damage(entry)
    with caplog.at_level(logging.WARNING):
        second, was_decoded = decoded_anew(load, source)
    assert was_decoded
    assert torch.equal(second.train.inputs, kept)
    assert str(entry) in caplog.text
    assert "made again" in caplog.text
    assert entries(tmp_path) == [entry]
    assert not decoded_anew(load, source)[1]


def test_nothing_is_left_when_decoding_fails(tmp_path, load, source):
    def stop(done, total, what):
        if what == "decoding images":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(source, progress=stop)
    assert entries(tmp_path) == []


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path, load, source):
    old, young = (tmp_path / "cache" / "data" / name for name in (".key-old", ".key-young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (1, 1))
    load(source)
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize("obstacle", ["a file is in the way", "the disk is full", "no right to write"])
def test_without_a_writable_cache_it_works_and_says_so(tmp_path, load, source, caplog, monkeypatch, obstacle):
    expected = load(source)
    place = tmp_path / "other"
    if obstacle == "a file is in the way":
        place.write_text("")
    elif obstacle == "the disk is full":
        if not Path("/dev/full").exists():
            pytest.skip("there is no /dev/full here")
        place = tmp_path / "full"
        monkeypatch.setattr(cache, "_OnDisk", _full_disk(cache._OnDisk))
    else:
        monkeypatch.setattr(Path, "mkdir", _raise(PermissionError(13, "Permission denied")))
    with caplog.at_level(logging.WARNING):
        dataset = load(source, cache_dir=place)
    assert same(dataset, expected)
    assert dataset.mean == expected.mean
    assert "cannot be written" in caplog.text
    assert "SCRIMP_CACHE" in caplog.text
    if obstacle == "the disk is full":
        assert "No space left" in caplog.text
        assert list((place / "data").iterdir()) == []


def _raise(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def _full_disk(base):
    class FullDisk(base):
        def begin(self, name, shape, dtype):
            super().begin(name, shape, dtype)
            if name.startswith("test"):
                self._files[name].close()
                self._files[name] = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115

    return FullDisk


def test_an_error_of_the_source_is_no_error_of_the_cache(tmp_path, caplog):
    def build(arrays):
        raise DataError("row 3")

    with pytest.raises(DataError, match="row 3"):
        cached(tmp_path, "key", build)
    assert not caplog.records


def build_ones(arrays):
    for name in ("train", "test"):
        arrays.begin(f"{name}_inputs", (2, 3, 3, 1), np.dtype(np.uint8))
        for _ in range(2):
            arrays.append(f"{name}_inputs", np.ones((1, 3, 3, 1), np.uint8))
    return Facts("images", ("a",), "")


def test_who_comes_second_takes_what_the_first_one_made(tmp_path):
    inner = []

    def build_twice(arrays):
        facts = build_ones(arrays)
        inner.append(cached(tmp_path, "key", build_ones))  # another process overtakes us
        return facts

    outer = cached(tmp_path, "key", build_twice)
    assert outer.checksum == inner[0].checksum
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["key"]
    assert outer.arrays["train_inputs"].filename.parent == tmp_path / "data" / "key"


def test_who_comes_second_replaces_what_is_damaged(tmp_path):
    def build_twice(arrays):
        facts = build_ones(arrays)
        cached(tmp_path, "key", build_ones)
        damage_truncate(tmp_path / "data" / "key")
        return facts

    cached(tmp_path, "key", build_twice)
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["key"]
    found = cached(tmp_path, "key", _raise(AssertionError("not built again")))
    assert int(found.arrays["train_inputs"].sum()) == 18


def test_many_at_once_agree(tmp_path):
    results, barrier = [], threading.Barrier(8)

    def work():
        barrier.wait()
        results.append(cached(tmp_path, "key", build_ones).checksum)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(results)) == 1
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["key"]


def test_two_processes_at_once_agree(tmp_path, source):
    script = (
        "import sys; from pathlib import Path; from scrimp.train.data import load_dataset;"
        "sys.stdin.read(1);"
        f"print(load_dataset({str(source)!r}, cache_dir=Path({str(tmp_path / 'cache')!r})).checksum)"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for worker in workers:
        worker.stdin.write("g")
        worker.stdin.flush()
    checksums = {worker.communicate()[0] for worker in workers}
    assert len(checksums) == 1
    assert len(entries(tmp_path)) == 1


def test_the_default_place_follows_the_environment(monkeypatch):
    monkeypatch.setenv("SCRIMP_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert default_cache_dir() == Path("/a")
    monkeypatch.delenv("SCRIMP_CACHE")
    assert default_cache_dir() == Path("/b/scrimp")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path("/c/.cache/scrimp")


def test_without_a_home_it_works_and_says_so(load, source, monkeypatch, caplog):
    monkeypatch.delenv("SCRIMP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", _raise(RuntimeError("no home")))
    with caplog.at_level(logging.WARNING):
        load(source, cache_dir=None)
    assert "no home" in caplog.text
