"""A store in an S3 bucket, by s3fs, against a server on this machine: the same as on disk, whatever request breaks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.reference.rounding_codec import Rounding
from tests.reference.stores import check_one_on_disk, make_net, run_of, state_bits
from torch import nn

from scrimp.checkpoints import CheckpointStore
from scrimp.errors import CorruptCheckpointError

s3fs = pytest.importorskip("s3fs", reason='needs s3fs and moto: pip install "scrimp[s3-test]"')
server = pytest.importorskip("moto.server", reason='needs s3fs and moto: pip install "scrimp[s3-test]"')
PART_BYTES = 5 << 20  # the least that S3 takes


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    threaded = server.ThreadedMotoServer(port=0, verbose=False)
    threaded.start()
    host, port = threaded.get_host_and_port()
    yield f"http://{host}:{port}"
    threaded.stop()


@pytest.fixture
def url(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    import fsspec

    options = {"endpoint_url": endpoint, "key": "any", "secret": "any"}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    bucket = f"bucket{abs(hash(request.node.name))}"
    s3fs.S3FileSystem(**options).mkdir(bucket)
    return f"s3://{bucket}/run"


def names(url: str) -> list[str]:
    fs = s3fs.S3FileSystem()
    fs.invalidate_cache()
    return sorted(path.rpartition("/")[2] for path in fs.find(url))


def test_a_store_in_a_bucket_is_one_on_disk(url: str, tmp_path: Path) -> None:
    check_one_on_disk(url, tmp_path)


@pytest.mark.parametrize("fail_at", range(1, 6))
def test_a_request_that_fails_loses_nothing(url: str, monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
    true = run_of(CheckpointStore(url, codec=Rounding()), [1, 2])
    with failing(monkeypatch, ("put_object", "delete_object", "delete_objects"), fail_at):
        try:
            CheckpointStore(url, codec=Rounding()).save(3, model=make_net())
        except OSError as error:
            assert "connection lost" in str(error)  # noqa: PT017 - not every save makes that many requests
    again = CheckpointStore(url, codec=Rounding())
    assert set(again.verify()) >= {1, 2}
    if 3 not in again.steps():
        assert state_bits(again, 2) == true[2]
    again.save(4, model=make_net())
    again.collect_garbage(grace_seconds=-1e9)
    named = {file.name for step in again.steps() for file in again._catalogue.manifest(step).files}
    assert {name for name in names(url) if name.endswith(".scrimp")} == named


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_between_the_parts_of_a_large_file(url: str, monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
    plain = s3fs.S3FileSystem._put_file

    async def in_parts(fs: Any, *arguments: Any, **more: Any) -> Any:
        return await plain(fs, *arguments, **{**more, "chunksize": PART_BYTES})

    monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", in_parts)
    s3fs.S3FileSystem.clear_instance_cache()  # an instance takes its methods when it is made
    draw = torch.Generator().manual_seed(0)
    large = nn.Linear(
        2000, 2000, bias=False
    )  # 16 MB, about 14.7 as stored: three parts (s3fs puts what is under two whole)
    with torch.no_grad():
        large.weight.copy_(torch.randn(large.weight.shape, generator=draw))
    store = CheckpointStore(url, codec=Rounding(), exact_tail=0)
    store.save(1, model=make_net())
    with (
        failing(monkeypatch, ("upload_part", "complete_multipart_upload"), fail_at),
        pytest.raises(OSError, match="connection lost"),
    ):
        store.save(2, model=large)
    again = CheckpointStore(url, codec=Rounding(), exact_tail=0)
    assert again.verify() == [1]
    again.save(3, model=large)
    assert torch.equal(CheckpointStore(url, codec=Rounding()).load(3)["model"]["weight"], large.weight)


def test_what_was_cut_off_is_found(url: str) -> None:
    store = CheckpointStore(url, codec=Rounding())
    run_of(store, [1, 2])
    fs = s3fs.S3FileSystem()
    (name,) = (name for name in names(url) if ".exact-" in name)
    whole = fs.cat_file(f"{url}/{name}")
    fs.pipe_file(f"{url}/{name}", whole[:-7])
    with pytest.raises(CorruptCheckpointError, match="truncated"):
        CheckpointStore(url, codec=Rounding()).load()


class failing:  # noqa: N801 - reads as a function
    """While it holds, the n-th request of some kinds fails, and so do all later ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...], fail_at: int) -> None:
        self.count, whole = 0, s3fs.S3FileSystem._call_s3

        async def call(fs: Any, method: str, *arguments: Any, **more: Any) -> Any:
            if method in kinds:
                self.count += 1
                if self.count >= fail_at:
                    raise OSError("connection lost")
            return await whole(fs, method, *arguments, **more)

        self.patch = monkeypatch.context()
        self.call = call

    def __enter__(self) -> None:
        self.patch.__enter__().setattr(s3fs.S3FileSystem, "_call_s3", self.call)

    def __exit__(self, *error: Any) -> None:
        self.patch.__exit__(*error)
