"""Compression together with other settings: runs resume bit by bit, and their sizes are those of their files."""

import pytest
import torch
from tests.reference.runs import last_state, run_until, tiny

from scrimp import bits
from scrimp.report.record import RunStatus, read_run
from scrimp.testing import assert_same_state
from scrimp.train.job import Seams
from scrimp.train.load import load_run, unpack_run
from scrimp.train.run import run

TOGETHER = {
    "lookahead": {"lookahead": True},
    "ema, frozen scales": {"ema": 0.9, "freeze_bn_scale": True, "bias_scale": 8},
    "whitening, ghost batches": {"whiten": True, "ghost_batch": 32, "pool_early": "norm"},
    "accumulation, budget": {"keep": 0.6, "num_epochs": 8, "accumulation": 2},
    "muon, budget": {
        "optimizer": "muon",
        "learning_rate": 0.05,
        "whiten": True,
        "lookahead": True,
        "keep": 0.6,
        "num_epochs": 8,
    },
    "muon with adamw": {"optimizer": "muon-adamw", "muon_learning_rate": 0.02, "learning_rate": 0.003},
}


def compressing(**changes):
    return tiny(**{"compress": True, "gamma": 1.0, "num_epochs": 4, "model_args": {"width": 8}, **changes})


@pytest.mark.parametrize("name", TOGETHER)
def test_a_stopped_run_goes_on_bit_by_bit(tmp_path, name):
    """Channels are gone by the time that it is stopped; file, model and accuracy are of one and the same network."""
    config = compressing(**TOGETHER[name])
    whole = run(config, out=tmp_path / "whole")
    stopped = run_until(config, tmp_path / "parts", whole.step * 7 // 8)
    assert stopped.status is RunStatus.INTERRUPTED
    kept = read_run(stopped.run_dir).series("step", "weights_kept_fraction")
    assert kept[-1].value < 1
    done = run(config, out=tmp_path / "parts", resume=True)
    assert_same_state(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))
    packed = [(tmp_path / one / "model.scrimp").read_bytes() for one in ("whole", "parts")]
    assert packed[0] == packed[1]
    assert done.summary.model_packed_bytes == len(packed[0])
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = [one.model(images) for one in (load_run(done.run_dir), unpack_run(done.run_dir / "model.scrimp"))]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


class Watch:
    """The job of a run, and which channels were dead when an average was last looked at."""

    def __init__(self):
        self.revived = self.seen_dead = self.shrunk = 0
        self.dead = {}

    def on_start(self, started):
        self.job = started.job
        (self.average,) = (s for name, s in started.job.seams.state.items() if name in ("ema", "lookahead"))

    def after_step(self, _step):
        layers = bits.quantized_layers(self.job.model)
        dead = {name: layer.dead.clone() for name, layer in layers.items()}
        for name, now in dead.items():
            if name in self.dead and self.dead[name].shape == now.shape:
                self.revived += int((self.dead[name] & ~now).sum())
            elif name in self.dead:
                self.shrunk += 1
            averages = self.average.named_tensors()
            for parameter in layers[name].parameter_names:
                if parameter.endswith("depth") and not layers[name].quantizer.least_bits:
                    assert torch.equal(averages[parameter] <= layers[name].quantizer.bits_of_nothing, now)
            assert averages[layers[name].weight_name].shape == layers[name].raw_weight.shape
        self.dead = dead
        self.seen_dead = max(self.seen_dead, sum(int(now.sum()) for now in dead.values()))


@pytest.mark.parametrize("settings", [{"lookahead": True}, {"ema": 0.95}])
def test_dead_channels_do_not_come_back_from_an_average(tmp_path, settings):
    watch = Watch()
    run(
        compressing(**settings), out=tmp_path / "run", seams=Seams(before_step=(watch.after_step,)),
        on_start=watch.on_start,
    )  # fmt: skip
    assert watch.seen_dead > 0
    assert watch.shrunk > 0
    assert watch.revived == 0


def test_the_frozen_whitening_filters_are_not_quantised(tmp_path):
    done = run(compressing(whiten=True, num_epochs=2), out=tmp_path / "run")
    (line,) = read_run(done.run_dir).events("compression")
    names = [layer[0] for layer in line["layers"]]
    assert "conv1.conv.mix" in names
    assert not any("whitening" in name for name in names)
