import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scrimp.errors import DataError, DataNotFoundError, MissingDependencyError


@pytest.fixture
def hub(tmp_path, monkeypatch, encode, pixels):
    """A Hub with one data set of two configurations."""
    calls = []

    def snapshot_download(repo_id, *, repo_type, allow_patterns):
        calls.append((repo_id, repo_type, allow_patterns))
        if repo_id != "some/pets":
            raise ConnectionError(f"no {repo_id}\nand more lines")
        return str(tmp_path / "snapshot")

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    features = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    for folder in ("small", "large"):
        table = pa.table({"image": [{"bytes": encode(p), "path": "x"} for p in pixels], "label": [0, 1] * 6})
        file = tmp_path / "snapshot" / folder / "train-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), file)
    (tmp_path / "snapshot" / "empty").mkdir()
    return calls


def test_a_data_set_from_the_hub(hub, load):
    dataset = load("hf://some/pets/small")
    assert hub == [("some/pets", "dataset", ["small/*.parquet"])]
    assert dataset.name == "some/pets/small"
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.train) == 10


def test_several_configurations_are_named(hub, load):
    with pytest.raises(DataError, match=r"several data sets.*large.*small.*hf://OWNER/NAME/FOLDER"):
        load("hf://some/pets")
    assert hub == [("some/pets", "dataset", ["*.parquet"])]


def test_no_network_or_no_such_data_set(hub, load):
    with pytest.raises(
        DataNotFoundError, match=r"hf://some/thing could not be fetched \(ConnectionError: no some/thing\)"
    ):
        load("hf://some/thing")


def test_no_parquet_files(hub, load):
    with pytest.raises(DataNotFoundError, match="no parquet files"):
        load("hf://some/pets/empty")


@pytest.mark.parametrize("address", ["hf://", "hf://name", "hf://owner/", "hf://a/b?c", "hf://a b/c"])
def test_another_form_of_address(hub, load, address):
    with pytest.raises(DataError, match="hf://OWNER/NAME"):
        load(address)
    assert not hub


def test_without_the_package(monkeypatch, load):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r'huggingface_hub.*pip install "scrimp\[hub\]"'):
        load("hf://some/pets")
