"""A saving that is off runs no code of its own while a model trains."""

import sys
from pathlib import Path

import scrimp
from scrimp.train.recipes import find_recipe
from scrimp.train.run import run
from scrimp.train.variants import savings_of, with_savings

ROOT = Path(scrimp.__file__).parent
# the loader and the augmentation of plain training, and average-free evaluation
PLAIN_STEPS = {"batch", "crop", "device_loader", "memory_format", "normalize", "views", "flip", "window"}
CODECS = {"checkpoints/residual", "checkpoints/excp", "checkpoints/logarithm", "checkpoints/fit", "checkpoints/uniform"}
OWN = {
    "samples": lambda module: module.startswith("samples/") or module in {"train/visited"},
    "steps": lambda module: module.startswith("steps/") and module.removeprefix("steps/") not in PLAIN_STEPS,
    "bits": lambda module: module.startswith("bits/"),
    "checkpoints": lambda module: module in CODECS,
}


def modules_that_ran(savings, tmp_path):
    """Modules of scrimp, as ``package/name``, of which any code ran from the first step to the end of the run."""
    seen = set()

    def watch(frame, event, argument):
        seen.add(frame.f_code.co_filename)

    config = with_savings(find_recipe("digits"), savings)
    config = config.replace(num_epochs=3, checkpoint_every=1, evaluate_every=1, model_args={"width": 4}, log_every=10)
    try:
        run(config, out=tmp_path / "run", on_start=lambda started: sys.setprofile(watch))
    finally:
        sys.setprofile(None)
    return {path.relative_to(ROOT).with_suffix("").as_posix() for path in map(Path, seen) if path.is_relative_to(ROOT)}


def own_modules(saving, modules):
    return {module for module in modules if OWN[saving](module)}


def test_plain_training_runs_no_code_of_any_saving(tmp_path):
    ran = modules_that_ran((), tmp_path)
    assert {"train/loop", "steps/device_loader", "checkpoints/store"} <= ran
    assert {saving: own_modules(saving, ran) for saving in OWN} == {saving: set() for saving in OWN}


def test_the_check_sees_each_saving_that_is_on(tmp_path):
    ran = modules_that_ran(savings_of("digits").names(), tmp_path)
    assert own_modules("samples", ran) >= {"samples/pruner", "train/visited"}
    assert own_modules("bits", ran) >= {"bits/quantizer", "bits/penalty", "bits/removal"}
    assert own_modules("checkpoints", ran) >= {"checkpoints/residual"}


def test_of_the_tricks_only_those_asked_for_run(tmp_path):
    ran = modules_that_ran(("steps",), tmp_path)
    assert own_modules("bits", ran) == own_modules("samples", ran) == own_modules("checkpoints", ran) == set()
