"""A compressed model for others: plain, shrunk, and checked by a process that knows nothing of scrimp."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from scrimp._core.structure import read_structure
from scrimp.bits.channels.watch import example_of, plain_outputs, remember_example_
from scrimp.bits.example import evaluating
from scrimp.bits.layers import quantized_layers
from scrimp.bits.onnx_codes import store_codes
from scrimp.bits.plain import plain_copy
from scrimp.bits.removal import without_ghosts
from scrimp.errors import ConfigError, ExportError, MissingDependencyError

Format = Literal["safetensors", "pt2", "onnx", "onnx-int"]

_TOLERANCE = 1e-5  # of the largest output


@dataclass(frozen=True)
class ExportReport:
    """What ``export`` wrote: its size, and how far its outputs were from the model's in the check.

    ``max_difference`` is relative to the largest output and None for safetensors, which holds no computation: there all
    tensors were compared bit by bit. ``coded`` has the integer types that weights are stored in (``onnx-int``), and how
    many are of each.
    """

    path: Path
    file_bytes: int
    max_difference: float | None
    coded: Mapping[str, int] = field(default_factory=dict)


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: Format = "safetensors",  # noqa: A002 - the word that users look for
    example_inputs: Any = None,
) -> ExportReport:
    """Write ``model`` without its quantisers, with the channels that are left, for use without scrimp.

    - ``safetensors``: weights in float32 under the names of the plain model; the structure is in the metadata.
    - ``pt2``: a program of ``torch.export``; ``torch.export.load(path).module()`` is the model, of any batch size.
    - ``onnx``: a float32 graph for onnxruntime and others, of any batch size. Needs ``scrimp[onnx]``.
    - ``onnx-int``: the same with weights as integer codes and a scale per channel, which DequantizeLinear turns into
      the same float32 numbers when the graph is loaded: fewer bytes, no more speed. A weight takes 4 bits (opset 21) if
      all codes of its tensor fit, else 8, or 16; ``scrimp.pack``, where each channel has its own, is the smaller file.
      By default onnxruntime multiplies 4-bit matrices with inputs rounded to 8 bits; the session option
      ``session.qdq_matmulnbits_accuracy_level`` of ``"1"``, with which the check runs, keeps the numbers.

    What was written is read back and run in a fresh process that does not import scrimp, on the example inputs. Its
    outputs have to be those of ``model`` in evaluation mode to 1e-5 of the largest, with the same largest entries, and
    stored codes have to be the model's.

    Args: model - unchanged. path - replaced when all was well. example_inputs - what the model is called with, the
        first dimension of tensors being the batch; give test data, of at least two samples, to check on that. Without
        them the example of ``self_compress_`` is taken.
    Raises: ExportError - the check failed, or torch cannot export the model; nothing was written. ConfigError - an
        unknown format, or ``onnx-int`` of a model without bits. MissingDependencyError - for ``onnx``.
    Cost: a copy of the model, two forward passes, and starting a process: some seconds.
    """
    if format not in get_args(Format):
        raise ConfigError(f"export: format is {format!r}; it has to be one of {', '.join(get_args(Format))}")
    if format == "onnx-int" and not quantized_layers(model):
        raise ConfigError(
            "export: onnx-int stores the codes of layers that learn their bits, and this model has none; give it some "
            "with self_compress_, or take format='onnx'"
        )
    if example_inputs is not None:
        remember_example_(model, example_inputs)
    target = Path(path)
    args, kwargs = _example(model, example_inputs)
    smaller = without_ghosts(model)
    plain = plain_copy(smaller).cpu().eval()
    with evaluating(model), torch.no_grad():
        outputs = _tensors(model(*args, **kwargs))
    inputs = [leaf.cpu() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    with tempfile.TemporaryDirectory(dir=target.resolve().parent, prefix=".export-") as folder:
        written, reference = Path(folder) / target.name, Path(folder) / "reference.safetensors"
        coded: dict[str, tuple[str, NDArray[np.int32]]] = {}
        if format == "safetensors":
            tensors = _state(plain)
            metadata = {"format": "pt", "structure": json.dumps(read_structure(plain).to_state())}
            written.write_bytes(safetensors.torch.save(tensors, metadata))
            safetensors.torch.save_file(tensors, reference)
            difference = None
            _check(_CHECK_TENSORS, written, reference)
        else:
            if format == "pt2":
                _quietly(lambda: torch.export.save(exported_program(plain, args, kwargs), written))
                script = _CHECK_PT2
            else:
                _write_onnx(plain, args, kwargs, written)
                script = _CHECK_ONNX
                if format == "onnx-int":
                    coded = store_codes(written, quantized_layers(smaller))
            named = {f"input{i}": tensor.contiguous() for i, tensor in enumerate(inputs)}
            named |= {f"output{i}": tensor.contiguous() for i, tensor in enumerate(outputs)}
            named |= {f"codes {name}": torch.from_numpy(codes) for name, (_, codes) in coded.items()}
            safetensors.torch.save_file(named, reference)
            difference = float(_check(script, written, reference))
        written.replace(target)
    return ExportReport(target, target.stat().st_size, difference, Counter(kind for kind, _ in coded.values()))


def _example(model: nn.Module, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments; those given in full, or the two samples that are remembered."""
    if given is None:
        try:
            return example_of(model)
        except KeyError:
            raise ConfigError("export needs example_inputs: inputs as the model takes them") from None
    if isinstance(given, Tensor):
        return (given,), {}
    return ((), dict(given)) if isinstance(given, dict) else (tuple(given), {})


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf.cpu() for leaf in tree_leaves(plain_outputs(outputs)) if isinstance(leaf, Tensor)]


def _state(plain: nn.Module) -> dict[str, Tensor]:
    """Dense copies; a tied tensor under each of its names, so that nothing has to know of it."""
    state = plain.state_dict().items()
    return {name: value.detach().clone().contiguous() for name, value in state if isinstance(value, Tensor)}


def exported_program(plain: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    """What ``torch.export`` makes of a plain model, for any batch size if it can. Raises: ExportError."""
    args, kwargs = _on_cpu(args), _on_cpu(kwargs)
    batch = torch.export.Dim("batch")

    def shape(value: Any) -> Any:
        return {0: batch} if isinstance(value, Tensor) and value.dim() else None

    shapes = (tuple(shape(value) for value in args), {name: shape(value) for name, value in kwargs.items()})
    names = [*_argument_names(plain, len(args)), *kwargs]
    by_name = dict(zip(names, [*shapes[0], *shapes[1].values()], strict=True))
    try:
        return torch.export.export(plain, args, kwargs, dynamic_shapes=by_name)
    except Exception:
        try:  # a model that is written for one batch size
            return torch.export.export(plain, args, kwargs)
        except Exception as error:
            raise ExportError(
                f"torch.export cannot follow {type(plain).__name__} ({type(error).__name__}: {_first_line(error)}); "
                "format='safetensors' needs no graph"
            ) from error


def _argument_names(plain: nn.Module, number: int) -> list[str]:
    code = type(plain).forward.__code__
    return list(code.co_varnames[1 : code.co_argcount][:number])


def _write_onnx(plain: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> None:
    try:
        import onnx  # noqa: F401, PLC0415
        import onnxruntime  # noqa: F401, PLC0415
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise MissingDependencyError(f'ONNX needs {error.name}: pip install "scrimp[onnx]"') from error
    program = _quietly(lambda: exported_program(plain, args, kwargs))
    try:
        done = _quietly(lambda: torch.onnx.export(program, dynamo=True, verbose=False))
        assert done is not None
        _quietly(lambda: done.save(path, include_initializers=True))
    except Exception as error:
        raise ExportError(
            f"torch cannot write {type(plain).__name__} as ONNX ({type(error).__name__}: {_first_line(error)})"
        ) from error


def _quietly(work: Callable[[], Any]) -> Any:
    """Torch's exporters tell of their own insides, in three ways: warnings, logs, and graphs that they print."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "torch.export", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return work()
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _on_cpu(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in values.items()}
    return tuple(value.cpu() if isinstance(value, Tensor) else value for value in values)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _check(script: str, *arguments: Path) -> str:
    """Run ``script`` in a fresh process; what it printed last. Raises: ExportError - it did not end well."""
    done = _run([sys.executable, "-I", "-c", _COMMON + script, *map(str, arguments)])
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError(f"the exported model was checked in a process of its own and failed: {told}")
    return done.stdout.strip().splitlines()[-1]


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


_COMMON = f"""
import sys
import safetensors.torch, torch
reference = safetensors.torch.load_file(sys.argv[2])

def compare(outputs):
    worst = 0.0
    for number, given in enumerate(outputs):
        wanted = reference[f"output{{number}}"]
        given = torch.as_tensor(given)
        assert given.shape == wanted.shape, f"shape {{tuple(given.shape)}} in place of {{tuple(wanted.shape)}}"
        if not wanted.is_floating_point():
            assert torch.equal(given, wanted), "other integers"
            continue
        difference = float((given - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-30)
        assert difference <= {_TOLERANCE}, f"outputs differ by {{difference:.1e}} of the largest"
        top = wanted.flatten(0, -2).topk(min(2, wanted.shape[-1]), dim=-1) if wanted.dim() > 1 else None
        if top is not None and wanted.shape[-1] > 1:
            is_clear = (top.values[:, 0] - top.values[:, 1]) > 2 * {_TOLERANCE} * float(wanted.abs().max())
            same = given.flatten(0, -2).argmax(-1) == top.indices[:, 0]
            assert bool(same[is_clear].all()), "other predictions"
        worst = max(worst, difference)
    assert not any(name.split(".")[0] == "scrimp" for name in sys.modules)
    print(worst)

def inputs():
    return [reference[f"input{{number}}"] for number in range(sum(name.startswith("input") for name in reference))]
"""

_CHECK_TENSORS = """
given = safetensors.torch.load_file(sys.argv[1])
assert given.keys() == reference.keys(), "other names"
for name, value in reference.items():
    assert given[name].dtype == value.dtype and torch.equal(given[name], value), f"{name} differs"
print(0.0)
"""

_CHECK_PT2 = """
program = torch.export.load(sys.argv[1])
arguments = iter(inputs())
from torch.utils import _pytree
args, kwargs = program.example_inputs
take = lambda leaf: next(arguments) if isinstance(leaf, torch.Tensor) else leaf
args, kwargs = _pytree.tree_map(take, args), _pytree.tree_map(take, kwargs)
with torch.no_grad():
    outputs = program.module()(*args, **kwargs)
compare([leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)])
"""

_CHECK_ONNX = """
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
# or products with 4-bit weights are taken with 8-bit inputs
options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
codes = {name.removeprefix("codes "): value for name, value in reference.items() if name.startswith("codes ")}
if codes:
    import onnx
    from onnx import numpy_helper
    stored = {one.name: one for one in onnx.load(sys.argv[1]).graph.initializer}
    for name, wanted in codes.items():
        given = torch.from_numpy(numpy_helper.to_array(stored[name]).astype("int32"))
        assert torch.equal(given, wanted), f"other codes in {name}"
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = [one.name for one in session.get_inputs()]
compare(session.run(None, dict(zip(names, [tensor.numpy() for tensor in inputs()], strict=True))))
"""
