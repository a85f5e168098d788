"""``scrimp checkpoints``: what it shows, writes and refuses."""

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.reference.stores import bits, run_of, sizes_in, the_file

from scrimp.checkpoints import CheckpointStore
from scrimp.cli import main


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    run_of(store, [100, 200, 300], width=64)
    return store


def test_ls_and_show(store: CheckpointStore, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = str(Path(store.path).parent)
    assert main(["checkpoints", "ls", run_dir]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "saved", "history", "ratio", "exact", "copy", "built", "upon"]
    assert [line.split()[0] for line in lines[1:4]] == ["100", "200", "300"]
    assert lines[1].rstrip().endswith("keyframe  exact")
    assert "3 checkpoints, 1 of them keyframes, 1 with an exact copy" in lines[4]
    report = store.report()
    assert f"{report.ratio:.1f}x" in lines[4]
    assert lines[5] == f"a difference alone: {report.delta_ratio:.1f}x"

    assert main(["checkpoints", "show", store.path, "200"]) == 0
    out = capsys.readouterr().out
    assert "model/4.weight" in out
    assert "second moment" in out
    assert "difference to step 100" in out
    assert main(["checkpoints", "show", store.path]) == 0
    assert "and every bit in an exact copy" in capsys.readouterr().out


def test_verify(store: CheckpointStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "verify", store.path]) == 0
    assert capsys.readouterr().out == "3 of 3 checkpoints are intact\n"
    the_file(store, 200, "delta").write_bytes(b"")
    assert main(["checkpoints", "verify", store.path]) == 1
    out = capsys.readouterr()
    assert out.out == "1 of 3 checkpoints are intact\n"
    assert "step 200: " in out.err
    assert "step 300: " in out.err


def test_files_for_others(store: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "export", store.path, str(tmp_path / "w.safetensors"), "--step", "100"]) == 0
    assert main(["checkpoints", "restore", store.path, str(tmp_path / "all.pt")]) == 0
    assert "step 300: " in capsys.readouterr().out
    assert safetensors.torch.load_file(tmp_path / "w.safetensors").keys() == store.load(100)["model"].keys()
    assert bits(torch.load(tmp_path / "all.pt", weights_only=True)) == bits(store.load())
    assert main(["checkpoints", "import", str(tmp_path / "other"), str(tmp_path / "all.pt")]) == 0
    assert bits(CheckpointStore(tmp_path / "other").load()) == bits(store.load())


def test_delete_and_gc(store: CheckpointStore, capsys: pytest.CaptureFixture[str]) -> None:
    before = bits(store.load(200))
    assert main(["checkpoints", "delete", store.path, "100"]) == 0
    assert "deleted 1; 2 are left" in capsys.readouterr().out
    assert bits(store.load(200)) == before
    (Path(store.path) / "step-000000100.delta-00.scrimp").write_bytes(b"x" * 100)
    size = sizes_in(store.path)
    assert main(["checkpoints", "gc", store.path, "--grace", "0"]) == 0
    assert "removed 1 files" in capsys.readouterr().out
    assert sizes_in(store.path) == size - 100


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["verify", "STORE"], "decoding"),
        (["restore", "STORE", "FILE"], "decoding"),
        (["export", "STORE", "FILE"], "decoding"),
        (["delete", "STORE", "100"], "rewriting"),
        (["gc", "STORE"], "looking for debris"),
        (["import", "OTHER", "FILE"], "storing"),
    ],
)
def test_long_work_shows_a_bar_on_a_terminal_only(
    store: CheckpointStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    shown: str,
) -> None:
    places = {"STORE": store.path, "FILE": str(tmp_path / "file.pt"), "OTHER": str(tmp_path / "other")}
    if "OTHER" in words:
        main(["checkpoints", "restore", store.path, places["FILE"]])
    elif words[0] == "delete":
        words = [*words, "200"]
    said = ["checkpoints", *(places.get(word, word) for word in words)]
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        assert main(said) == 0
    assert shown in capsys.readouterr().out
    if words[0] != "delete":
        assert main(said) == 0
        assert shown not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst", "x"], "no command is called 'checkpoints lst'; did you mean 'ls'"),
        (["ls", "nowhere"], "no checkpoint in nowhere"),
        (["ls"], "STORE"),
        (["delete", "STORE", "7"], "no checkpoint of step 7"),
        (["show", "STORE", "7"], "no checkpoint of step 7"),
        (["import", "STORE", "a", "b", "--step", "1"], "--step is for one PATH"),
        (["ls", "nosuch://x"], "cannot open 'nosuch://x'"),
    ],
)
def test_bad_input(store: CheckpointStore, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    size = sizes_in(store.path)
    assert main(["checkpoints", *(store.path if word == "STORE" else word for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert sizes_in(store.path) == size


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "--help"]) == 0
    assert "verify STORE" in capsys.readouterr().out
