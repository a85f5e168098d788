"""Shapes, counts, names, causality and determinism of the models, and every way in which asking for one can fail."""

import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scrimp.errors import ConfigError
from scrimp.train.models import MODELS, ModelFacts, build_model, check_model
from scrimp.train.models.transformer import rotary_table, rotate

CIFAR = ModelFacts(num_classes=10, in_channels=3, image_size=32)
FASHION = ModelFacts(num_classes=10, in_channels=1, image_size=28)
DIGITS = ModelFacts(num_classes=10, in_channels=1, image_size=8)
TEXT = ModelFacts(vocab_size=65, context_length=16)

SMALL = {
    "small-cnn": {"width": 4},
    "resnet9": {"width": 4},
    "airbench": {"width": 4},
    "resnet18": {"width": 4},
    "resnet20": {"width": 4},
    "resnet50": {"width": 4, "zero_last": False},
    "vit": {"width": 16, "depth": 1, "num_heads": 2, "patch_size": 4},
    "gpt": {"width": 16, "depth": 1, "num_heads": 2},
}
IMAGE_MODELS = [name for name in MODELS if name != "gpt"]


@pytest.fixture(autouse=True)
def same_weights_in_every_order():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        yield


def facts_of(name: str) -> ModelFacts:
    return TEXT if name == "gpt" else CIFAR


def count(model: nn.Module, *, norms: bool = True) -> int:
    skipped = (
        set() if norms else {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    )
    return sum(p.numel() for p in model.parameters() if id(p) not in skipped)


# Known answers: published or counted by hand.


def test_resnet9_at_full_width_has_pages_number_of_weights():
    convolutions = 9 * (3 * 64 + 64 * 128 + 2 * 128**2 + 128 * 256 + 256 * 512 + 2 * 512**2)
    model = build_model("resnet9", {}, CIFAR)
    assert count(model, norms=False) == convolutions + 512 * 10 == 6_568_640


def test_resnet50_has_the_standard_number_of_parameters():
    facts = ModelFacts(num_classes=1000, in_channels=3, image_size=32)
    model = build_model("resnet50", {}, facts)
    assert count(model) == 25_557_032
    assert {block.bn3.weight.abs().max().item() for block in model.layer2} == {0.0}
    with_scales = build_model("resnet50", {"width": 4, "zero_last": False}, facts)
    assert {block.bn3.weight.min().item() for block in with_scales.layer2} == {1.0}
    names = {"conv1.weight", "layer1.0.downsample.0.weight", "layer3.5.bn3.running_var", "fc.bias"}
    assert names <= model.state_dict().keys()


def test_resnet18_has_the_standard_number_of_parameters():
    assert count(build_model("resnet18", {}, CIFAR)) == 11_173_962


def test_resnet20_has_the_papers_parameters_and_those_of_its_shortcuts():
    stages = sum(6 * 9 * width * width for width in (16, 32, 64)) - 9 * 16 * 32 - 9 * 32 * 64
    norms = 2 * (16 + 6 * (16 + 32 + 64))
    shortcuts = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    by_hand = 9 * 3 * 16 + stages + norms + 64 * 10 + 10
    assert by_hand == 269_722  # the paper's table has 0.27 million
    assert count(build_model("resnet20", {}, CIFAR)) == by_hand + shortcuts == 272_474


def test_airbench_at_full_width_has_the_published_weights():
    groups = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    stem = 24 * 3 * 2 * 2 + 24
    assert count(build_model("airbench", {}, CIFAR), norms=False) == stem + groups + 256 * 10 == 1_970_488


def test_gpt_has_twelve_times_depth_times_width_squared_weights_and_its_embeddings():
    depth, width, vocab_size = 3, 32, 65
    settings = {"depth": depth, "width": width, "num_heads": 2}
    norms = (2 * depth + 1) * 2 * width
    assert count(build_model("gpt", settings, TEXT)) == 12 * depth * width**2 + norms + 2 * vocab_size * width
    assert (
        count(build_model("gpt", {**settings, "tied": True}, TEXT))
        == 12 * depth * width**2 + norms + vocab_size * width
    )


def test_small_cnn_and_vit_counts():
    assert (
        count(build_model("small-cnn", {"width": 32}, DIGITS), norms=False) == 9 * (32 + 1024 + 2048 + 4096) + 640 + 10
    )
    depth, width, patches = 2, 16, 64
    blocks = depth * (12 * width**2 + 4 * width)
    around = (3 * 16 * width + width) + patches * width + 2 * width + (width * 10 + 10)
    assert count(build_model("vit", {"depth": depth, "width": width, "num_heads": 2}, CIFAR)) == blocks + around


GOLDEN_NAMES = {
    "small-cnn": "conv1.conv conv1.norm conv2.conv conv2.norm conv3.conv conv3.norm conv4.conv conv4.norm head",
    "resnet9": "prep.conv prep.norm layer1.conv layer1.norm residual1.inner.res1.conv residual1.inner.res1.norm "
    "residual1.inner.res2.conv residual1.inner.res2.norm layer2.conv layer2.norm layer3.conv layer3.norm "
    "residual3.inner.res1.conv residual3.inner.res1.norm residual3.inner.res2.conv residual3.inner.res2.norm head",
    "airbench": "stem group1.conv1 group1.norm1 group1.conv2 group1.norm2 group2.conv1 group2.norm1 group2.conv2 "
    "group2.norm2 group3.conv1 group3.norm1 group3.conv2 group3.norm2 head",
    "resnet18": "conv1 bn1 "
    "layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2 layer1.1.conv1 layer1.1.bn1 layer1.1.conv2 layer1.1.bn2 "
    "layer2.0.conv1 layer2.0.bn1 layer2.0.conv2 layer2.0.bn2 layer2.0.downsample.0 layer2.0.downsample.1 "
    "layer2.1.conv1 layer2.1.bn1 layer2.1.conv2 layer2.1.bn2 "
    "layer3.0.conv1 layer3.0.bn1 layer3.0.conv2 layer3.0.bn2 layer3.0.downsample.0 layer3.0.downsample.1 "
    "layer3.1.conv1 layer3.1.bn1 layer3.1.conv2 layer3.1.bn2 "
    "layer4.0.conv1 layer4.0.bn1 layer4.0.conv2 layer4.0.bn2 layer4.0.downsample.0 layer4.0.downsample.1 "
    "layer4.1.conv1 layer4.1.bn1 layer4.1.conv2 layer4.1.bn2 fc",
    "resnet20": "conv1 bn1 "
    "layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2 layer1.1.conv1 layer1.1.bn1 layer1.1.conv2 layer1.1.bn2 "
    "layer1.2.conv1 layer1.2.bn1 layer1.2.conv2 layer1.2.bn2 "
    "layer2.0.conv1 layer2.0.bn1 layer2.0.conv2 layer2.0.bn2 layer2.0.downsample.0 layer2.0.downsample.1 "
    "layer2.1.conv1 layer2.1.bn1 layer2.1.conv2 layer2.1.bn2 layer2.2.conv1 layer2.2.bn1 layer2.2.conv2 layer2.2.bn2 "
    "layer3.0.conv1 layer3.0.bn1 layer3.0.conv2 layer3.0.bn2 layer3.0.downsample.0 layer3.0.downsample.1 "
    "layer3.1.conv1 layer3.1.bn1 layer3.1.conv2 layer3.1.bn2 layer3.2.conv1 layer3.2.bn1 layer3.2.conv2 layer3.2.bn2 "
    "fc",
    "resnet50": " ".join([
        "conv1 bn1",
        *(
            f"layer{layer}.{block}.{name}"
            for layer, depth in enumerate((3, 4, 6, 3), 1)
            for block in range(depth)
            for name in (
                "conv1", "bn1", "conv2", "bn2", "conv3", "bn3",
                *(("downsample.0", "downsample.1") if block == 0 else ()),
            )
        ),
        "fc",
    ]),
    "gpt": "embed blocks.0.norm1 blocks.0.attention.qkv blocks.0.attention.out blocks.0.norm2 blocks.0.up "
    "blocks.0.down norm head",
    "vit": "position patch blocks.0.norm1 blocks.0.attention.qkv blocks.0.attention.out blocks.0.norm2 blocks.0.up "
    "blocks.0.down norm head",
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_names_of_tensors_are_those_that_checkpoints_hold(name):
    """Renaming a module breaks every stored checkpoint: change this list only on purpose."""
    model = build_model(name, SMALL[name], facts_of(name))
    names = list(model.state_dict())
    owners = list(dict.fromkeys(n.rpartition(".")[0] or n for n in names))
    assert owners == GOLDEN_NAMES[name].split()
    leaves = {n.rpartition(".")[2] for n in names}
    assert leaves <= {"weight", "bias", "running_mean", "running_var", "num_batches_tracked", "position"}
    with_bias = {n.removesuffix(".bias") for n in names if n.endswith(".bias")}
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)}
    assert with_bias - norms == {
        "small-cnn": {"head"},
        "airbench": {"stem"},
        "resnet18": {"fc"},
        "resnet20": {"fc"},
        "resnet50": {"fc"},
        "vit": {"patch", "head"},
    }.get(name, set())


# Shapes and number formats.


@pytest.mark.parametrize(
    "facts", [CIFAR, FASHION, ModelFacts(num_classes=7, in_channels=2, image_size=(24, 16))], ids=str
)
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_models_give_one_logit_per_class(name, facts):
    model = build_model(name, SMALL[name], facts)
    assert model(facts.example_input(3)).shape == (3, facts.num_classes)
    assert model.training


@pytest.mark.parametrize("name", ["small-cnn", "resnet9", "resnet18", "resnet20", "vit"])
def test_models_for_eight_pixels(name):
    build_model(name, SMALL[name], DIGITS)


@pytest.mark.parametrize("length", [1, 7, 16])
def test_gpt_takes_any_length_up_to_its_context(length):
    model = build_model("gpt", SMALL["gpt"], TEXT)
    assert model(torch.zeros(3, length, dtype=torch.int64)).shape == (3, length, 65)


def test_bfloat16_autocast_trains_every_parameter_of_resnet50():
    """Its last norms see one pixel of few images here, so that rounding is not compared."""
    model = build_model("resnet50", SMALL["resnet50"], CIFAR).to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images.to(memory_format=torch.channels_last))
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet50"])
def test_bfloat16_autocast_and_channels_last_train_every_parameter(name):
    model = build_model(name, SMALL[name], facts_of(name))
    inputs = facts_of(name).example_input(4)
    generator = torch.Generator().manual_seed(0)
    if name == "gpt":
        inputs = torch.randint(0, 65, inputs.shape, generator=generator)
    else:
        inputs = torch.randn(inputs.shape, generator=generator).to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    exact = model(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(inputs)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.1)
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_memory_format_does_not_change_the_result(name):
    model = build_model(name, SMALL[name], CIFAR).double().eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = model(images)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("name", MODELS)
def test_the_global_seed_decides_the_weights_and_the_check_draws_nothing(name):
    def weights_and_state() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        torch.default_generator.manual_seed(5)
        state = build_model(name, SMALL[name], facts_of(name)).state_dict()
        after_check = torch.get_rng_state()
        torch.default_generator.manual_seed(5)
        own = (
            {}
            if name not in ("small-cnn", "resnet9", "airbench", "resnet18", "resnet20")
            else {"in_channels": 3, "num_classes": 10}
        )
        if own:
            MODELS[name](**own, **SMALL[name])
            assert torch.equal(torch.get_rng_state(), after_check)
        return state, after_check

    with torch.random.fork_rng():
        first, first_state = weights_and_state()
        second, second_state = weights_and_state()
    assert torch.equal(first_state, second_state)
    assert all(torch.equal(first[key], second[key]) for key in first)


# What each model is for.


@pytest.mark.parametrize("autocast", [False, True])
def test_gpt_does_not_see_the_future(autocast):
    """Logits before a changed token are equal bit for bit, those from it on are not."""
    model = build_model("gpt", {"width": 32, "depth": 2, "num_heads": 2}, TEXT).eval()
    tokens = torch.randint(0, 65, (2, 16), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 65
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9], after[:, 9])


def test_the_causality_test_can_fail():
    model = build_model("gpt", {"width": 32, "depth": 2, "num_heads": 2}, TEXT).eval()
    for block in model.blocks:
        block.attention.causal = False
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    changed = tokens.clone()
    changed[:, 9:] = 1
    assert not torch.equal(model(tokens)[:, :9], model(changed)[:, :9])


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    table = rotary_table(12, 8)
    assert torch.equal(table[:, 0], torch.tensor([[1.0] * 4, [0.0] * 4]))
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 12, 8)
    turned_query, turned_key = rotate(query, table), rotate(key, table)
    torch.testing.assert_close(turned_query.norm(dim=-1), query.norm(dim=-1))
    scores = (turned_query @ turned_key.mT)[0, 0]
    torch.testing.assert_close(scores[3, 1], scores[11, 9], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(scores[3, 1], scores[3, 2])


def test_attention_equals_the_formula():
    model = build_model("gpt", {"width": 16, "depth": 1, "num_heads": 2}, TEXT).double()
    attention = model.blocks[0].attention
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    heads = []
    for head in range(2):
        query, key, value = (x @ attention.qkv.weight[16 * i + 8 * head : 16 * i + 8 * head + 8].T for i in range(3))
        scores = (query @ key.mT / 8**0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ value)
    torch.testing.assert_close(attention(x), torch.cat(heads, -1) @ attention.out.weight.T)


def test_dropout_acts_in_training_only():
    model = build_model("gpt", {**SMALL["gpt"], "dropout": 0.5}, TEXT)
    tokens = TEXT.example_input(2)
    with torch.random.fork_rng():
        assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_tied_embeddings_are_one_tensor():
    model = build_model("gpt", {**SMALL["gpt"], "tied": True}, TEXT)
    assert model.head.weight is model.embed.weight


def test_pooling_order_of_resnet9():
    late, early = (build_model("resnet9", {"width": 4, "pool_early": flag}, CIFAR) for flag in (False, True))
    assert [name for name, _ in late.layer1.named_children()] == ["conv", "norm", "act", "pool"]
    assert [name for name, _ in early.layer1.named_children()] == ["conv", "pool", "norm", "act"]
    assert late.state_dict().keys() == early.state_dict().keys()


def test_airbench_for_96_percent_has_three_convolutions_and_a_residual_in_a_group():
    widths = {"width": 128, "mid_width": 384, "top_width": 512}
    model = build_model("airbench", {**widths, "depth": 3}, CIFAR)
    stem = 24 * 3 * 4 + 24
    groups = 9 * (24 * 128 + 2 * 128**2 + 128 * 384 + 2 * 384**2 + 384 * 512 + 2 * 512**2)
    assert count(model, norms=False) == stem + groups + 512 * 10
    group = model.group2.eval()
    x = torch.randn(1, 128, 4, 4)
    pooled = group.act1(group.norm1(group.pool(group.conv1(x))))
    inner = group.residual.inner
    residual = inner.norm3(inner.conv3(inner.act2(inner.norm2(inner.conv2(pooled)))))
    assert torch.equal(group(x), nn.functional.gelu(pooled + residual))
    rejects("airbench", {"depth": 4}, CIFAR, "depth is 4", "2 convolutions")
    rejects("airbench", {"mid_width": -1}, CIFAR, "width -1")


def test_momentum_of_airbenchs_running_statistics():
    for settings, expected in (({}, 0.1), ({"norm_momentum": 0.4}, 0.4)):
        model = build_model("airbench", {"width": 4, **settings}, CIFAR)
        assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {expected}


def test_the_scale_of_resnet9s_head():
    assert build_model("resnet9", {"width": 4}, CIFAR).scale.factor == 1 / 8
    assert build_model("resnet9", {"width": 4, "head_scale": 1 / 16}, CIFAR).scale.factor == 1 / 16


def test_dirac_filters_pass_the_input_on():
    model = build_model("airbench", {"width": 8}, CIFAR)
    conv = model.group1.conv2
    images = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(conv(images), images)
    plain = build_model("airbench", {"width": 8, "dirac": False}, CIFAR).group1.conv2
    assert not torch.equal(plain(images), images)


# Asking for a model.


def rejects(spec: str, model_args: dict, facts: ModelFacts, *words: str) -> str:
    """The message of the ConfigError, after checking that it is one sentence or two with all the words."""
    with pytest.raises(ConfigError) as caught:
        build_model(spec, model_args, facts)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def test_unknown_names_suggest_the_nearest():
    rejects("resnet-9", {}, CIFAR, "'resnet-9'", "did you mean 'resnet9'", "MODULE:FUNCTION")
    rejects("zzz", {}, CIFAR, "'zzz'", *MODELS)


@pytest.mark.parametrize(
    ("model_args", "words"),
    [
        ({"widht": 8}, ["'widht'", "width: int = 64", "pool_early: bool = False"]),
        ({"width": 8.5}, ["width=8.5", "float", "a whole number", "width: int"]),
        ({"width": True}, ["width=True", "bool", "a whole number"]),
        ({"width": "wide"}, ["width='wide'", "str", "a whole number"]),
        ({"pool_early": 1}, ["pool_early=1", "true or false"]),
        ({"num_classes": 5}, ["num_classes=5", "the data sets it", "10"]),
        ({"width": 0}, ["width 0", "at least 1"]),
        ({"width": -3}, ["width -3", "at least 1"]),
    ],
)
def test_wrong_model_arguments(model_args, words):
    rejects("resnet9", model_args, CIFAR, *words)


def test_a_whole_number_does_where_a_number_is_wanted():
    build_model("gpt", {**SMALL["gpt"], "dropout": 0}, TEXT)


@pytest.mark.parametrize(
    "settings", [{"num_heads": 3}, {"num_heads": 0}, {"depth": 0}, {"dropout": 1.5}, {"width": 10}]
)
def test_impossible_transformers(settings):
    rejects("gpt", {"width": 16, "num_heads": 2, **settings}, TEXT, "'gpt'")


def test_a_patch_that_does_not_fit():
    rejects("vit", {"patch_size": 5}, CIFAR, "patch_size 5", "32x32")


def test_a_model_for_the_other_kind_of_data():
    rejects("gpt", {}, CIFAR, "vocab_size", "images")
    rejects("vit", {}, TEXT, "num_classes", "text")


def test_an_image_that_is_too_small():
    rejects("airbench", {}, DIGITS, "(2, 1, 8, 8)", "(2, 10)")


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Write a module into the current directory, which is on the path as under the command line; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)

    def write(source: str, name: str = "my_models_of_the_test") -> str:
        Path(f"{name}.py").write_text("import torch\nfrom torch import nn\n" + source)
        sys.modules.pop(name, None)
        return name

    yield write
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_own_function_gets_the_facts_that_it_names(own_module):
    name = own_module(
        "def make(num_classes, *, image_size, in_channels=1, width: int = 8, **rest):\n"
        "    first = nn.Linear(in_channels * image_size**2, width)\n"
        "    net = nn.Sequential(nn.Flatten(), first, nn.Linear(width, num_classes))\n"
        "    net.seen = rest\n"
        "    return net\n"
    )
    model = build_model(f"{name}:make", {"width": 5, "colour": "red"}, CIFAR)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [(5, 3 * 32 * 32), (10, 5)]
    assert model.seen == {"colour": "red"}


def test_own_class_and_own_text_model(own_module):
    name = own_module(
        "class Net(nn.Module):\n"
        "    def __init__(self, vocab_size: int):\n"
        "        super().__init__()\n"
        "        self.table = nn.Embedding(vocab_size, vocab_size)\n"
        "    def forward(self, tokens):\n"
        "        return self.table(tokens)\n"
    )
    assert type(build_model(f"{name}:Net", {}, TEXT)).__name__ == "Net"


def test_own_module_from_the_current_directory_in_a_package(own_module):
    Path("inner_package_of_the_test").mkdir()
    Path("inner_package_of_the_test/nets.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    build_model("inner_package_of_the_test.nets:make", {}, DIGITS)


@pytest.mark.parametrize(
    ("source", "function", "words"),
    [
        (
            "raise RuntimeError('no luck')",
            "make",
            ["importing", "RuntimeError: no luck", "my_models_of_the_test.py, line 3"],
        ),
        ("def make(:", "make", ["importing", "SyntaxError", "line 3"]),
        ("import not_there_at_all", "make", ["importing", "ModuleNotFoundError", "not_there_at_all"]),
        ("def make_net(): ...", "make", ["no function 'make'", "did you mean 'make_net'"]),
        ("make = 3", "make", ["'make' is int, not a function or class"]),
        ("make = nn.Linear(1, 1)", "make", ["'make' is Linear, not a function or class"]),
        ("def make(): return 3", "make", ["returned int, not a torch.nn.Module"]),
        ("def make(): pass", "make", ["returned NoneType"]),
        ("def make(): return nn.Flatten()", "make", ["no parameter that can be trained"]),
        (
            "def make(): return 1 // 0",
            "make",
            ["could not be made", "ZeroDivisionError", "my_models_of_the_test.py, line 3"],
        ),
        ("def make(depth): return nn.Flatten()", "make", ["needs a value for depth"]),
        (
            "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 9))",
            "make",
            ["(2, 9)", "(2, 10)", "(2, 1, 8, 8)"],
        ),
        (
            "def make(): return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))",
            "make",
            ["does not take", "(2, 1, 8, 8)"],
        ),
        ("def make(): return nn.LSTM(8, 8)", "make", ["(2, 10)"]),
        (
            (
                "class make(nn.Linear):\n    __init__ = lambda self: super(make, self).__init__(64, 10)\n"
                "    forward = lambda self, x: (x, x)"
            ),
            "make",
            ["gave tuple", "(2, 10)"],
        ),
    ],
)
def test_own_models_that_fail(own_module, source, function, words):
    rejects(f"{own_module(source)}:{function}", {}, DIGITS, *words)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("(logits, logits)", ["gave tuple in training mode", "(2, 10)"]),
        ("logits[:, :5]", ["does not fit the data in training mode", "(2, 5)", "(2, 10)"]),
        ("logits[..., None]", ["does not fit the data in training mode", "(2, 10, 1)", "(2, 10)"]),
        ("logits @ logits", ["does not take the data in training mode", "RuntimeError"]),
    ],
)
def test_own_models_that_fail_in_training_mode_only(own_module, output, words):
    name = own_module(
        "class Net(nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(64, 10)\n"
        "    def forward(self, x):\n"
        "        logits = super().forward(x.flatten(1))\n"
        f"        return {output} if self.training else logits\n"
    )
    message = rejects(f"{name}:Net", {}, DIGITS, *words)
    assert "in training mode" not in rejects("airbench", {}, DIGITS)
    assert message.count("in training mode") == 1


def test_own_models_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rejects("nowhere_to_be_found:make", {}, DIGITS, "no module 'nowhere_to_be_found'", str(tmp_path))
    rejects("torch.nowhere_to_be_found:make", {}, DIGITS, "no module 'torch.nowhere_to_be_found'")
    rejects("nets/mine.py:make", {}, DIGITS, "'mine:make'", "path")
    rejects("mine.py:make", {}, DIGITS, "'mine:make'")
    rejects("mine:", {}, DIGITS, "MODULE:FUNCTION")
    rejects(":make", {}, DIGITS, "MODULE:FUNCTION")


def test_the_check_leaves_the_model_as_it_was():
    model = build_model("resnet9", {"width": 4}, CIFAR)
    model.prep.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    check_model(model, CIFAR)
    assert [module.training for module in model.modules()] == modes
    assert False in modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Restless(nn.Module):
    """Changes in a forward whatever can be changed: tensors in place, tensors by assignment, and random generators."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 32)
        self.norm = nn.BatchNorm2d(10)  # of maps of 1x1
        self.register_buffer("count", torch.tensor([0, 1]))
        self.register_buffer("scale", torch.ones(1).expand(10))  # its elements share memory

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.count = self.count + random.randrange(1, 10)
        np.random.random()  # noqa: NPY002 - the global generator on purpose
        with torch.no_grad():
            self.conv.weight.neg_()
        return nn.functional.dropout(self.norm(self.conv(images)).flatten(1), training=self.training) * self.scale


def bits_of(model: nn.Module) -> list[tuple[int, str, bytes]]:
    return [
        (id(tensor), name, tensor.detach().numpy().tobytes())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]


def test_the_check_restores_every_bit_and_every_global_generator():
    model = Restless()
    with torch.no_grad():
        model.conv.weight[0] = 0.0  # which becomes -0.0
        model.conv.weight[1, 0, 0, 0] = torch.nan
    python, numpy = random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    before, torch_state = bits_of(model), torch.get_rng_state()
    check_model(model, CIFAR)
    assert bits_of(model) == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python
    assert pickle.dumps(np.random.get_state()) == numpy  # noqa: NPY002
    assert model.norm.num_batches_tracked == 0
    model(CIFAR.example_input(2))
    changed = {new[1] for old, new in zip(before, bits_of(model), strict=True) if old != new}
    assert changed == {"conv.weight", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "count"}


def test_a_model_of_lazy_layers_keeps_the_weights_that_its_first_forward_draws():
    torch.default_generator.manual_seed(3)
    checked = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 10))
    check_model(checked, DIGITS)
    torch.default_generator.manual_seed(3)
    plain = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Linear(8, 10)).eval()
    plain(DIGITS.example_input(2))
    expected = plain.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in checked.state_dict().items())
