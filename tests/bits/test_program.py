"""A packed file that holds its graph is a model without the model's code."""

import json
from pathlib import Path

import pytest
import torch
from tests.reference.zoo import make
from torch import Tensor, nn

import scrimp
from scrimp.bits import self_compress_
from scrimp.bits.program import Program, describe
from scrimp.errors import ConfigError, DataError, ExportError, FormatError


def compressed(name: str) -> tuple[nn.Module, Tensor]:
    model, batch = make(name, "gelu", norm=True, padding=1)
    self_compress_(model, batch, bits=5)
    return model.eval(), batch


@pytest.mark.parametrize("name", ["resnet", "squeeze-excite", "vit", "gpt"])
def test_it_computes_the_same(tmp_path: Path, name: str) -> None:
    model, batch = compressed(name)
    assert scrimp.size_report(model, graph=True).packed_bytes > scrimp.size_report(model).packed_bytes
    report = scrimp.pack(model, tmp_path / "m.scrimp", graph=True)
    assert report.packed_bytes == (tmp_path / "m.scrimp").stat().st_size == sum(
        (report.code_bytes, report.scale_bytes, report.tensor_bytes, report.header_bytes)
    )  # fmt: skip
    rebuilt = scrimp.unpack(tmp_path / "m.scrimp")
    filled = scrimp.unpack(tmp_path / "m.scrimp", make(name, "gelu", norm=True, padding=1)[0])
    for inputs in (batch, batch[:3]):
        assert torch.equal(rebuilt(inputs), filled(inputs))
        assert (rebuilt(inputs) - model(inputs)).abs().max() <= 1e-5 * model(inputs).abs().max()
    assert rebuilt.state_dict().keys() == filled.state_dict().keys()
    assert {n for n, _ in rebuilt.named_parameters()} == {n for n, _ in filled.named_parameters()}


class Odd(nn.Module):
    """Keyword arguments, a dict of results, numbers that are not finite, and a table that no state holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor, *, shift: Tensor) -> dict[str, Tensor]:
        y = self.layer(x) + shift * self.table
        ones = torch.ones(x.shape[0], 4, dtype=x.dtype, device=x.device)
        return {"y": y.masked_fill(y < 0, -float("inf")), "size": ones}


def test_names_dicts_and_tables(tmp_path: Path) -> None:
    model = Odd()
    example = {"x": torch.randn(3, 4), "shift": torch.randn(3, 4)}
    self_compress_(model, example)
    scrimp.pack(model, tmp_path / "m.scrimp", graph=True)
    rebuilt = scrimp.unpack(tmp_path / "m.scrimp")
    wanted, given = model(**example), rebuilt(**example)
    assert given.keys() == wanted.keys()
    assert all(torch.allclose(given[key], wanted[key]) for key in wanted)


class ByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if float(x.sum()) > 0 else x


def test_what_has_no_graph_is_refused(tmp_path: Path) -> None:
    model, _ = compressed("chain")
    scrimp.pack(model, tmp_path / "m.scrimp")
    with pytest.raises(ConfigError, match=r"holds no graph.*graph=True"):
        scrimp.unpack(tmp_path / "m.scrimp")
    by_value = ByValue()
    self_compress_(by_value, torch.ones(2, 4))
    with pytest.raises(ExportError, match=r"torch\.export cannot follow ByValue"):
        scrimp.pack(by_value, tmp_path / "n.scrimp", graph=True)
    with pytest.raises(ConfigError, match="needs an example"):
        scrimp.pack(nn.Linear(2, 2), tmp_path / "n.scrimp", graph=True)
    assert not (tmp_path / "n.scrimp").exists()


@pytest.mark.parametrize("name", [
    "aten.from_file.default", "os.system.default", "aten.relu", "aten.nothing.default", "aten.as_strided.default",
    "aten._sparse_coo_tensor_unsafe.default", "aten.set_.source_Tensor", "aten.empty.memory_format",
    "aten.copy_.default",
])  # fmt: skip
def test_only_operations_on_tensors_are_carried_out(name: str) -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    description = json.loads(json.dumps(describe(plain.eval(), (torch.ones(2, 2),), {})))
    assert torch.equal(Program(description, plain.state_dict())(torch.ones(2, 2)), plain(torch.ones(2, 2)))
    description["steps"][-1][0] = name
    with pytest.raises(FormatError, match="has a graph that cannot be read"):
        Program(description, plain.state_dict())
    with pytest.raises(FormatError, match=r"needs '0.weight', which is not in the file"):
        Program(describe(plain, (torch.ones(2, 2),), {}), {"0.bias": torch.ones(2)})


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (["mul", [["a"], 2**31], {"dict": {}}], "mul of what is no number"),
        (["getitem", [{"value": 0}, 0], {"dict": {}}], "item of what is no list"),
        (["aten.ones.default", [[2]], {"dict": {"dtype": {"dtype": "load"}}}], "dtype called 'load'"),
        (["aten.ones.default", [[2]], {"dict": {"dtype": {"os": "system"}}}], "os called 'system'"),
    ],
)
def test_arguments_are_what_they_say(step: list[object], message: str) -> None:
    plain = nn.Sequential(nn.Linear(2, 2))
    description = describe(plain.eval(), (torch.ones(2, 2),), {})
    description["steps"].append(step)
    with pytest.raises(FormatError, match=message):
        Program(description, plain.state_dict())(torch.ones(2, 2))


class ByLength(nn.Module):
    """What it computes depends on a length that the graph has as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.layer(x).sum(1) / x.shape[1]
        return y if scale is None else y * scale


def test_inputs_that_the_graph_is_not_for_are_refused(tmp_path: Path) -> None:
    model = ByLength()
    self_compress_(model, torch.randn(2, 5, 4))
    scrimp.pack(model, tmp_path / "m.scrimp", graph=True)
    rebuilt = scrimp.unpack(tmp_path / "m.scrimp")
    for batch in (1, 2, 7):
        x = torch.randn(batch, 5, 4)
        assert torch.allclose(rebuilt(x), model(x), atol=1e-6)
    x = torch.randn(2, 9, 4)
    with pytest.raises(DataError, match=r"input 1 is torch.float32 \(2, 9, 4\); the graph .* \(any, 5, 4\)"):
        rebuilt(x)
    for args, kwargs in (((x, x), {}), ((), {}), ((), {"x": x}), ((x,), {"scale": x})):
        with pytest.raises(ConfigError, match=r"packed with 1 positional argument"):
            rebuilt(*args, **kwargs)
    with pytest.raises(DataError, match=r"torch.float64"):
        rebuilt(torch.randn(2, 5, 4).double())
