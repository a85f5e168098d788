import sys
from pathlib import Path

import pytest

from scrimp.errors import ConfigError, DataError, DataNotFoundError, MissingDependencyError
from scrimp.train.data import KNOWN_NAMES


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    folder = tmp_path / "data-folder"
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "play.txt").write_text("to be or not to be")
    (folder / "mine").mkdir()
    (folder / "mine" / "own.txt").write_text("something else")
    monkeypatch.setenv("SCRIMP_DATA", str(folder))
    return folder


def test_names_are_folders_in_the_data_folder(data_folder, load):
    assert load("text").name == "text"
    assert load("text").source.startswith(f"text file, {data_folder}/text/play.txt")
    assert load("mine").vocab_size == len(set("something else"))


@pytest.fixture
def namesakes(tmp_path, monkeypatch):
    """The current directory, with folders that are called like data sets."""
    monkeypatch.chdir(tmp_path)
    for name in ("text", "digits", "cifar10", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "other.txt").write_text("other words")
    return tmp_path


def test_a_known_name_means_the_known_data_wherever_it_is_asked_for(data_folder, namesakes, load):
    assert load("digits").kind == "images"
    assert load("text").vocab_size == len(set("to be or not to be"))


@pytest.mark.parametrize("name", ["text", "digits"])
def test_a_folder_called_like_a_known_name_is_given_as_a_path(data_folder, namesakes, load, name):
    for data in (f"./{name}", f"{name}/", Path(name), namesakes / name):
        assert load(data).vocab_size == len(set("other words"))
        assert load(data).name == name


def test_a_path_that_exists_wins_over_another_name(data_folder, namesakes, load):
    assert load("mine").vocab_size == len(set("other words"))


def test_a_known_name_without_data_points_to_the_folder_of_that_name(data_folder, namesakes, load):
    with pytest.raises(DataNotFoundError, match=r"'cifar10' was not found.*'cifar10' here is \./cifar10\)"):
        load("cifar10")
    with pytest.raises(DataNotFoundError, match=r"no data at 'fashion-mnist': there is no such path"):
        load(Path("fashion-mnist"))


@pytest.mark.parametrize(
    ("name", "hub"),
    [("cifar10", "hf://uoft-cs/cifar10"), ("fashion-mnist", "hf://zalando-datasets/fashion_mnist"), ("text", None)],
)
@pytest.mark.parametrize("folder", ["unset", "set"])
def test_a_known_name_without_data_says_what_to_do(load, tmp_path, monkeypatch, name, hub, folder):
    if folder == "set":
        monkeypatch.setenv("SCRIMP_DATA", str(tmp_path))
    else:
        monkeypatch.delenv("SCRIMP_DATA", raising=False)
    with pytest.raises(DataNotFoundError) as caught:
        load(name)
    message = str(caught.value)
    assert "--data PATH" in message
    assert "set SCRIMP_DATA" in message
    assert " here is ./" not in message
    assert (f"--data {hub}" in message) if hub else ("hf://" not in message)
    assert (str(tmp_path) in message) == (folder == "set")
    assert isinstance(caught.value, FileNotFoundError)


def test_an_unknown_name_names_the_nearest(load, monkeypatch):
    monkeypatch.delenv("SCRIMP_DATA", raising=False)
    with pytest.raises(DataNotFoundError, match=r"no data called 'cifar-10'.*did you mean 'cifar10'"):
        load("cifar-10")
    with pytest.raises(DataNotFoundError, match=f"names are {', '.join(KNOWN_NAMES)}"):
        load("qqqq")


@pytest.mark.parametrize("path", ["no/such/place", "./nothing", ""])
def test_a_path_that_does_not_exist(load, path):
    with pytest.raises(DataNotFoundError, match="no such path"):
        load(path)


def test_an_empty_folder_and_one_without_data(load, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is empty; give parquet"):
        load(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "table.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"found table.csv"):
        load(tmp_path / "other")
    with pytest.raises(DataError, match=r"table.csv is no data that scrimp reads"):
        load(tmp_path / "other" / "table.csv")


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.1, float("nan")])
def test_holdout_is_a_proper_fraction(load, holdout):
    with pytest.raises(ConfigError, match="holdout is"):
        load("digits", holdout=holdout)


def test_a_missing_package_names_the_extra(load, tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingDependencyError, match=r'package \'pyarrow\': pip install "scrimp\[train\]"'):
        load(tmp_path / "train.parquet")
