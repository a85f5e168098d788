"""What the four savings are in each recipe."""

import pytest
from tests.reference.command import same_bits, weights
from tests.reference.runs import last_state, run_until, tiny

from scrimp.cli.flags import apply_flags, parse
from scrimp.cli.main import main
from scrimp.cli.train import _configure, _parser
from scrimp.errors import ConfigError
from scrimp.report.record import RunStatus, read_run
from scrimp.testing import assert_same_state
from scrimp.train.config import TrainConfig
from scrimp.train.recipes import find_recipe
from scrimp.train.run import run
from scrimp.train.variants import SAVINGS, Savings, parse_savings, savings_of, with_savings

WITH_SAVINGS = ["digits", "fashion-mnist", "cifar10-small", "cifar10", "text"]
PAIRS = [(a, b) for number, a in enumerate(SAVINGS) for b in SAVINGS[number + 1 :]]


@pytest.mark.parametrize("recipe", WITH_SAVINGS)
def test_each_saving_changes_its_own_settings_only(recipe):
    config, of = find_recipe(recipe), savings_of(recipe)
    plain = with_savings(config, ())
    assert plain.checkpoint_codec == "lossless"
    assert (plain.compress, plain.keep, plain.whiten, plain.lookahead) == (False, None, False, False)
    seen = set()
    for name in of.names():
        changed = {line.partition(":")[0] for line in _differences(with_savings(config, [name]), plain)}
        assert changed == set(getattr(of, name)), "a setting of a saving is its default, so it says nothing"
        assert not changed & seen
        seen |= changed
    every = {line.partition(":")[0] for line in _differences(with_savings(config, of.names()), plain)}
    assert every == seen


def _differences(ours, theirs):
    return [name for name, value in ours.to_dict().items() if value != theirs.to_dict()[name]]


def test_digits_has_all_four_by_default():
    assert find_recipe("digits") == with_savings(find_recipe("digits"), SAVINGS)


def test_words_for_savings():
    assert parse_savings("none", "digits") == ()
    assert parse_savings("all", "text") == ("samples", "steps", "bits", "checkpoints")
    assert parse_savings("bits, samples", "digits") == ("bits", "samples")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits", "--savings", "bit"], "no saving is called 'bit'; did you mean 'bits'"),
        (["cifar10", "--savings", "step"], "no saving is called 'step'; did you mean 'steps'"),
        (["imagenet", "--savings", "all"], "the recipe imagenet does not say what its savings are"),
        (["--savings", ""], "no saving is called ''"),
    ],
)
def test_words_that_are_no_savings(words, message, capsys):
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_saving_that_a_recipe_does_not_have(monkeypatch):
    monkeypatch.setattr("scrimp.train.variants.savings_of", lambda _recipe: Savings(samples={"keep": 0.5}))
    with pytest.raises(ConfigError, match="the recipe text has no saving in bits; it has samples, checkpoints"):
        with_savings(find_recipe("text"), ["bits"])


def flags(*words):
    namespace = parse(_parser(TrainConfig()), ["digits", *words])
    return apply_flags(namespace, find_recipe("digits"))


def test_a_given_flag_drops_what_would_contradict_it():
    assert flags("--prune-ratio", "0.5").keep is None
    assert flags("--sample-rule", "quantiles").keep is None
    assert flags("--keep", "0.8").keep == 0.8
    assert flags("--no-compress").gamma == TrainConfig().gamma
    assert flags("--gamma", "0.3").compress is True


# two savings in one run

CHEAP = {"num_epochs": 4, "model_args": {"width": 8}, "checkpoint_every": 0.7}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs of every pair."""
    root = tmp_path_factory.mktemp("pairs")

    def of(pair):
        out = root / "+".join(pair)
        if not out.exists():
            run(_config(pair), out=out)
        return out

    return of


def _config(savings):
    settings = with_savings(find_recipe("digits"), savings)
    kept = {name: getattr(settings, name) for saving in savings for name in getattr(savings_of("digits"), saving)}
    gamma = {"gamma": 0.5} if "bits" in savings else {}
    return tiny(**{"checkpoint_codec": "lossless", **kept, **gamma, **CHEAP})


@pytest.mark.parametrize("pair", [*PAIRS, SAVINGS], ids="+".join)
def test_savings_go_together_and_a_stopped_run_goes_on_bit_by_bit(whole, tmp_path, pair):
    """Stopped in the middle of an epoch that prunes, when channels are gone already."""
    reference = read_run(whole(pair))
    assert reference.summary is not None
    assert (reference.summary.sample_visits < reference.summary.sample_visits_full) == ("samples" in pair)
    assert (reference.summary.model_packed_bytes is not None) == ("bits" in pair)
    stop_at = reference.summary.num_steps * 2 // 3
    run_until(_config(pair), tmp_path / "parts", stop_at)
    done = run(_config(pair), out=tmp_path / "parts", resume=True)
    assert done.status is RunStatus.FINISHED
    assert_same_state(last_state(whole(pair)), last_state(tmp_path / "parts"))
    assert same_bits(weights(whole(pair)), weights(tmp_path / "parts"))
    if "bits" in pair:
        assert (whole(pair) / "model.scrimp").read_bytes() == (tmp_path / "parts" / "model.scrimp").read_bytes()


WITH_ALL = {
    "lookahead, accumulation": {"lookahead": True, "accumulation": 2, "gamma": 1.0},
    "ema, ghost batches, clipping, adamw": {
        "ema": 0.9, "ghost_batch": 32, "clip_norm": 1.0, "optimizer": "adamw", "learning_rate": 0.01, "gamma": 2.5,
    },
    "growing images, frozen bias, excp": {
        "first_size": 6, "whiten_bias_epochs": 2, "checkpoint_codec": "excp", "gamma": 1.0,
        "model": "tests.reference.models:stem_net",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_ALL)
def test_all_savings_go_with_the_other_settings(tmp_path, name):
    config = _config(SAVINGS).replace(**WITH_ALL[name])
    whole = run(config, out=tmp_path / "whole")
    assert whole.summary.sample_visits < whole.summary.sample_visits_full
    assert whole.summary.weights_kept_fraction < 1
    run_until(config, tmp_path / "parts", whole.step * 2 // 3)
    run(config, out=tmp_path / "parts", resume=True)
    assert_same_state(last_state(tmp_path / "whole"), last_state(tmp_path / "parts"))
    packed = [(tmp_path / one / "model.scrimp").read_bytes() for one in ("whole", "parts")]
    assert packed[0] == packed[1]


def test_the_comparison_above_can_fail(whole, tmp_path):
    run(_config(("samples", "bits")).replace(seed=1), out=tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_same_state(last_state(whole(("samples", "bits"))), last_state(tmp_path / "other"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.6, "prune_ratio": 0.5}, "do not go together"),
        ({"compress": True, "graphs": True}, "--compress and --graphs do not go together"),
        ({"ema": 0.9, "lookahead": True}, "choose one of them"),
        ({"checkpoint_codec": "excp", "checkpoint_error": 0.3}, "--checkpoint-error is for"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(tiny(num_epochs=4, **settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_short_training_leaves_the_recipes_pruning_out_and_says_so(capsys):
    assert _configured("--num-epochs", "2").sample_rule == "none"
    assert "2 epochs are too few to leave samples out; each visits all" in capsys.readouterr().err
    assert _configured("--num-epochs", "4").keep == 0.6
    assert _configured("--num-epochs", "2", "--keep", "0.5").keep == 0.5  # what was asked for is refused, later
    assert _configured("--num-epochs", "2", "--savings", "samples").keep == 0.6
    assert not capsys.readouterr().err


def _configured(*words):
    return _configure(parse(_parser(TrainConfig()), list(words)))[0]
