import json
import os
import signal
import stat
import subprocess
import sys

import pytest

from scrimp._core.atomic_files import atomic_write, write_json, write_text
from scrimp.errors import ConfigError


def test_a_new_file_and_an_old_one(tmp_path):
    path = tmp_path / "a"
    for content in (b"first", b"second, longer"):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_nothing_is_seen_before_the_end(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == b"new"


def write_half_and_raise(path, error):
    with atomic_write(path) as file:
        file.write(b"half of the n")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError, ValueError])
def test_an_exception_leaves_the_old_file_and_no_rubbish(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(error):
        write_half_and_raise(path, error)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_late_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as file:
        file.write(b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_limit_of_the_file_size_is_a_full_disk(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys; from scrimp._core.atomic_files import atomic_write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with atomic_write(sys.argv[1]) as file: file.write(bytes(100_000))"
    )
    process = subprocess.run([sys.executable, "-c", code, path], check=False, capture_output=True, text=True)
    assert process.returncode == 1
    assert "File too large" in process.stderr
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    code = (
        "import os, signal, sys; from scrimp._core.atomic_files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(bytes(10)); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert all(e.name == "a" or (e.name.startswith(".a.") and e.name.endswith(".tmp")) for e in tmp_path.iterdir())


def test_the_directory_is_synced_after_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(stat.S_ISDIR(os.fstat(fd).st_mode)), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda *args: (calls.append("replace"), replace(*args))[1])
    with atomic_write(tmp_path / "a"):
        pass
    assert calls == [False, "replace", True]


def test_the_mode_follows_the_umask_and_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    write_text(tmp_path / "link", "x\n")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_bytes() == b"x\n"
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "real" / "a").stat().st_mode) == 0o666 & ~umask


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), atomic_write(tmp_path / "nowhere" / "a"):
        pass


def test_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None, 0.1], "ü": "ß"})
    assert json.loads(path.read_text()) == {"a": [1, None, 0.1], "ü": "ß"}
    assert path.read_text().endswith("}\n")
    for value in (float("nan"), {"a": float("inf")}, {1, 2}, object()):
        with pytest.raises(ConfigError, match=r"a\.json as JSON"):
            write_json(path, value)
    assert json.loads(path.read_text())["a"] == [1, None, 0.1]
