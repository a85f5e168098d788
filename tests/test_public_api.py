"""The public surface, frozen: a name or flag that comes or goes shows here as a difference to be wanted."""

import dataclasses
import importlib
import inspect
import re

import pytest

from scrimp.cli import main
from scrimp.report.summary import Summary
from scrimp.train.config import TrainConfig
from scrimp.train.recipes import RECIPES

NAMES = {
    "scrimp": [
        "CheckpointStore", "InfoBatch", "Rule", "SamplePruner", "StructureChange", "apply_structure_",
        "apply_structure_change", "bits", "checkpoints", "export", "no_decay_rule", "pack", "param_groups",
        "read_structure", "remove_dead_channels_", "samples", "self_compress_", "size_penalty", "size_report",
        "steps", "unpack",
    ],
    "scrimp.bits": [
        "Barrier", "BitsExponent", "BitsRange", "ChannelGraph", "Compression", "Constant", "ExportReport", "LayerFacts",
        "LayerSize", "LayerSummary", "Objective", "PackedInfo", "PackedLayerInfo", "QuantizedLayer",
        "Quantizer", "RemovalReport", "SizeReport", "StepRange", "TargetSize", "Wiring", "channel_graph",
        "channel_summary", "export", "finalize_", "fit_size_", "freeze_bits_", "graph_wiring", "inspect_packed",
        "pack", "packed_bytes_estimate", "param_groups", "plain_copy", "quantize", "quantized_layers", "read_metadata",
        "read_packed", "remove_dead_channels_", "rule", "same_structure_on_all_ranks", "self_compress_",
        "set_wiring_", "size_penalty", "size_report", "unpack",
    ],
    "scrimp.samples": [
        "Budget", "DynamicRandom", "EpochReport", "EpsilonGreedy", "InfoBatch", "MeanThreshold", "OrderDP",
        "Quantiles", "RePB", "Rule", "RunReport", "SamplePruner", "ScoreView", "SeTa", "StaticRandom", "StaticTop",
        "UpperConfidenceBound", "Visits", "mean", "median", "winsorized_mean",
    ],
    "scrimp.steps": [
        "AlternatingFlip", "Batch", "BatchTransform", "Cutout", "DeviceLoader", "EarlyFreeze", "GhostBatchNorm1d",
        "GhostBatchNorm2d", "GhostBatchNorm3d", "Muon", "Normalize", "Padding", "PiecewiseLinear",
        "ProgressiveResize", "RandomCrop", "RandomFlip", "RandomResizedCrop", "RandomWindow", "SGDSettings",
        "WeightAverage", "absorb_bn_scale_", "bias_rule", "decoupled_sgd", "dirac_init_", "freeze_bn_scale_",
        "ghost_batch_norm_", "identity", "mirror", "orthogonalize", "pool_early_",
        "predict_with_views", "replace_activation_", "shift", "shifted_views", "split_filters", "two_branch",
        "whiten_input_", "whitening_filters",
    ],
    "scrimp.checkpoints": [
        "Bound", "BoundKind", "CheckpointInfo", "CheckpointStore", "Codec", "Encoded", "ExCP", "ExCPReference", "Group",
        "ImportReport", "Lossless", "Residual", "SaveReport", "StoreReport", "StoredPart", "TensorError",
        "TensorPart", "TensorReport",
        "export_state", "export_weights", "import_checkpoint",
    ],
    "scrimp.report": [
        "Point", "RunRecord", "RunStatus", "RunWriter", "Summary", "read_run", "render_page", "summary_panel",
        "summary_text", "write_page",
    ],
    "scrimp.testing": [
        "RestoreCost", "ResumeReport", "Stateful", "assert_same_state", "check_codec", "check_global_rng_untouched",
        "check_ranks_agree", "check_resume", "check_round_trip", "check_rule",
        "check_stateful", "copy_state", "resume_equivalence",
        "run_ranks", "uninterrupted_losses",
    ],
}  # fmt: skip
ERRORS = [
    "CheckpointNotFoundError", "ConfigError", "CorruptCheckpointError", "DataError", "DataNotFoundError",
    "ExportError", "FormatError", "MissingDependencyError", "NoEffectWarning", "NonFiniteLossError",
    "RunExistsError", "ScrimpError", "StoreBusyError", "StructureError",
]  # fmt: skip
TRAIN_FLAGS = [
    "--accumulation", "--batch-size", "--beta2", "--bias-scale", "--celu", "--checkpoint-async", "--checkpoint-codec",
    "--checkpoint-error", "--checkpoint-every", "--clip-norm", "--compress", "--context-length", "--cooldown",
    "--crop-mode", "--crop-padding", "--crop-scale", "--cutout", "--data", "--decay", "--decay-norms",
    "--deterministic", "--device", "--ema", "--evaluate-every", "--final-learning-rate", "--first-learning-rate",
    "--first-size", "--flip", "--freeze-bn-scale", "--full-size-from", "--gamma", "--ghost-batch", "--graphs", "--help",
    "--image-size", "--keep", "--keep-checkpoints", "--label-smoothing", "--last-size", "--learning-rate",
    "--log-every", "--lookahead", "--lr", "--model", "--model-args", "--momentum", "--muon-learning-rate",
    "--muon-momentum", "--no-checkpoint-async", "--no-compress", "--no-decay-norms", "--no-deterministic",
    "--no-freeze-bn-scale", "--no-graphs", "--no-lookahead", "--no-profile", "--no-tensorboard", "--no-whiten",
    "--num-epochs", "--optimizer", "--out", "--pool-early", "--precision", "--profile", "--prune-ratio", "--quantizer",
    "--resume",
    "--rung", "--sample-rule", "--savings", "--seed", "--target-bytes", "--tensorboard", "--threads", "--views",
    "--wandb", "--warmup", "--weight-decay", "--whiten", "--whiten-bias-epochs", "--whiten-epsilon",
]  # fmt: skip
SUMMARY_KEYS = {
    "recipe", "seed", "device", "test_accuracy", "test_loss_nats", "num_epochs", "num_steps", "sample_visits",
    "sample_visits_full", "train_seconds", "examples_per_second", "model_float32_bytes", "model_packed_bytes",
    "weights_kept_fraction", "checkpoint_raw_bytes", "checkpoint_stored_bytes", "versions", "pruning",
    "class_keep_rates",
}  # fmt: skip


def public(module_name):
    """Each public name of a module with what it is."""
    module = importlib.import_module(module_name)
    return {name: getattr(module, name) for name in module.__all__}


@pytest.mark.parametrize("module_name", NAMES)
def test_public_names(module_name):
    assert sorted(public(module_name)) == sorted(NAMES[module_name])
    assert importlib.import_module(module_name).__all__ == sorted(importlib.import_module(module_name).__all__)


def test_public_names_do_not_leak():
    """A name without underscore that is not in ``__all__`` would be used all the same."""
    import scrimp

    visible = {name for name, value in vars(scrimp).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert visible <= set(scrimp.__all__)


def test_errors():
    module = importlib.import_module("scrimp.errors")
    own = [
        name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == "scrimp.errors"
    ]
    assert sorted(own) == ERRORS


def test_recipes():
    assert list(RECIPES) == [
        "digits", "fashion-mnist", "cifar10-small", "cifar10", "cifar10-sgd", "cifar10-page", "cifar10-96", "imagenet",
        "text",
    ]  # fmt: skip
    assert [recipe().recipe for recipe in RECIPES.values()] == list(RECIPES)


def test_commands(capsys):
    assert main(["--help"]) == 0
    assert re.findall(r"^  (\w+) ", capsys.readouterr().out, re.MULTILINE) == [
        "train",
        "compare",
        "report",
        "checkpoints",
        "pack",
        "unpack",
        "export",
        "inspect",
    ]


def test_flags_of_train(capsys):
    assert main(["train", "--help"]) == 0
    help_text = capsys.readouterr().out.partition("examples:")[0]
    listed = re.findall(r"^  (?:-\w, )?(--.*?)(?:   |$)", help_text, re.MULTILINE)
    assert sorted(flag for flags in listed for flag in re.findall(r"--[\w-]+", flags)) == TRAIN_FLAGS


def test_every_setting_is_a_flag():
    settings = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(TrainConfig)}
    assert settings - set(TRAIN_FLAGS) == {"--recipe"}  # which is a word and not a flag


def test_summary_keys():
    assert {field.name for field in dataclasses.fields(Summary)} >= SUMMARY_KEYS


def undocumented(name, value):
    """Public parts of ``value`` without a docstring of their own."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return []
    # a dataclass without docstring gets its signature as one
    text = value.__doc__ or ""
    missing = [] if text.strip() and not text.startswith(f"{value.__name__}(") else [name]
    if inspect.isclass(value) and value.__module__.startswith("scrimp"):
        for part, member in vars(value).items():
            member = getattr(member, "__func__", member)  # noqa: PLW2901 - class and static methods
            is_documentable = inspect.isfunction(member) or isinstance(member, property)
            if not part.startswith("_") and is_documentable and not (member.__doc__ or "").strip():
                missing.append(f"{name}.{part}")
    return missing


@pytest.mark.parametrize("module_name", [*NAMES, "scrimp.errors", "scrimp.train.recipes"])
def test_every_public_name_has_a_docstring(module_name):
    module = importlib.import_module(module_name)
    assert (module.__doc__ or "").strip()
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
    names = NAMES.get(module_name) or [name for name in own if not name.startswith("_")]
    assert names
    missing = [part for name in names for part in undocumented(name, getattr(module, name))]
    assert missing == []


def test_a_missing_docstring_is_found():
    class Silent:
        def method(self):
            pass

    @dataclasses.dataclass
    class Value:
        number: int

    Silent.__module__ = "scrimp.silent"
    assert undocumented("Silent", Silent) == ["Silent", "Silent.method"]
    assert undocumented("Value", Value) == ["Value"]
