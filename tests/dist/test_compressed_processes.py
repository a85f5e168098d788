"""Two gloo processes that compress their model: they agree with each other, and with one process at twice the batch."""

import json
from pathlib import Path

from tests.reference.command import scrimp
from tests.reference.processes import VIT, torchrun

COMPRESS = [*VIT, "--compress", "--gamma", "1.5", "--num-epochs", "6", "--evaluate-every", "3", "--checkpoint-every", "3"]


def test_two_processes_shrink_the_model_like_one(tmp_path: Path) -> None:
    """What is removed is compared between ranks by the run itself; here the outcome is, against one process."""
    one = scrimp(*COMPRESS, "--batch-size", "64", "--out", "one", cwd=tmp_path)
    two = torchrun(*COMPRESS, "--batch-size", "32", "--out", "two", cwd=tmp_path)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert first["weights_kept_fraction"] < 0.9
    for key in ("weights_kept_fraction", "model_packed_bytes"):
        assert abs(first[key] - second[key]) <= 0.05 * first[key]
    assert abs(first["test_accuracy"] - second["test_accuracy"]) <= 0.08
    packed = (tmp_path / "two" / "model.scrimp").stat().st_size
    assert packed == second["model_packed_bytes"]
