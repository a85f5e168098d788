"""Two gloo processes under torchrun that prune samples train like one at twice the batch."""

import json
from pathlib import Path

import torch
from tests.reference.command import scrimp, weights
from tests.reference.processes import VIT, torchrun

# checkpoints within epochs
PRUNED = [*VIT, "--checkpoint-every", "0.4", "--num-epochs", "4", "--sample-rule", "random", "--keep", "0.5"]


def test_two_processes_prune_like_one(tmp_path: Path) -> None:
    one = scrimp(*PRUNED, "--batch-size", "64", "--out", "one", cwd=tmp_path)
    two = torchrun(*PRUNED, "--batch-size", "32", "--out", "two", cwd=tmp_path)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    for key in ("num_steps", "sample_visits", "sample_visits_full"):
        assert summaries[0][key] == summaries[1][key]
    assert summaries[0]["sample_visits"] < summaries[0]["sample_visits_full"]
    theirs = weights(tmp_path / "two")
    for name, tensor in weights(tmp_path / "one").items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)
