"""``scrimp pack``, ``scrimp unpack``, ``scrimp export`` and ``scrimp inspect``."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import safetensors.torch

from scrimp import bits
from scrimp._core.atomic_files import atomic_write
from scrimp.bits.export import Format
from scrimp.cli.flags import parse
from scrimp.cli.main import EXIT_DONE, Parser
from scrimp.errors import ConfigError, DataNotFoundError
from scrimp.report.units import format_bytes
from scrimp.train.load import load_run
from scrimp.train.outcome import PACKED_NAME
from scrimp.train.run_dir import read_config


def pack_command(words: Sequence[str]) -> int:
    """Pack the model of a finished run; returns the exit code."""
    parser = Parser(
        prog="scrimp pack",
        description="Pack the model of a finished run. Of a run with --compress, the packed model that is there is "
        "copied; of another, weights are rounded to 8 bits per channel first, and what that costs is not measured.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run, such as runs/digits-001")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: RUN/model.scrimp)")
    parser.add_argument("--bits", type=float, metavar="X", help="bits per channel, 1 to 16 (default: 8)")
    namespace = parse(parser, list(words))
    out: Path = namespace.out or namespace.run / PACKED_NAME
    existing = namespace.run / PACKED_NAME
    if read_config(namespace.run).compress and existing.exists():
        if namespace.bits is not None:
            raise ConfigError(f"--bits: {namespace.run} has learned its bits; its packed model is copied as it is")
        bits.inspect_packed(existing)  # refuses a damaged one
        if out.resolve() != existing.resolve():
            with atomic_write(out) as file:
                file.write(existing.read_bytes())
        print(f"{out}: {format_bytes(out.stat().st_size)}, as the run packed it")
        return EXIT_DONE
    trained = load_run(namespace.run)
    bits.self_compress_(trained.model, trained.example(), bits=8.0 if namespace.bits is None else namespace.bits)
    report = bits.pack(trained.model, out, metadata=trained.metadata())
    print(f"{out}: {format_bytes(report.packed_bytes)}, {report.bits_per_weight:.2f} bits per weight")
    return EXIT_DONE


def unpack_command(words: Sequence[str]) -> int:
    """Write the weights of a packed model as safetensors; returns the exit code."""
    parser = Parser(
        prog="scrimp unpack",
        description="Write the float32 weights of a packed model, under the names of the plain one.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE|RUN", help="a packed model, or the run that has it")
    help_text = "file to write (default: FILE with .unpacked.safetensors)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=help_text)
    namespace = parse(parser, list(words))
    packed = _packed_file(namespace.file)
    # not model.safetensors, which in a run's directory is the model that the run trained
    out: Path = namespace.out or packed.with_suffix(".unpacked.safetensors")
    if out.resolve() == packed.resolve():
        raise ConfigError(f"--out: {out} is the packed model itself; give another file")
    tensors = bits.read_packed(packed)
    with atomic_write(out) as file:
        file.write(safetensors.torch.save(tensors, {"format": "pt"}))
    print(f"{out}: {format_bytes(out.stat().st_size)}, {len(tensors)} tensors")
    return EXIT_DONE


def export_command(words: Sequence[str]) -> int:
    """Write the model of a finished run for use without scrimp; returns the exit code."""
    parser = Parser(
        prog="scrimp export",
        description="Write the model of a finished run, as small as it has become, and check it in another process.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run, such as runs/digits-001")
    kinds = get_args(Format)
    parser.add_argument("--format", choices=kinds, default="safetensors", metavar="|".join(kinds))
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: in RUN, named by its format)")
    namespace = parse(parser, list(words))
    suffix = {"safetensors": "export.safetensors", "onnx-int": "int.onnx"}.get(namespace.format, namespace.format)
    out: Path = namespace.out or namespace.run / f"model.{suffix}"
    trained = load_run(namespace.run, quantized=namespace.format == "onnx-int")
    report = bits.export(trained.model, out, format=namespace.format, example_inputs=trained.example())
    coded = "".join(f", {number} weights as {kind}" for kind, number in sorted(report.coded.items()))
    print(f"{out}: {format_bytes(report.file_bytes)}{coded}, checked in a process without scrimp")
    return EXIT_DONE


def inspect_command(words: Sequence[str]) -> int:
    """Show what a packed model consists of; returns the exit code."""
    parser = Parser(
        prog="scrimp inspect", description="Show the layers of a packed model and their bits.", allow_abbrev=False
    )
    parser.add_argument("file", type=Path, metavar="FILE|RUN", help="a packed model, or the run that has it")
    namespace = parse(parser, list(words))
    file = _packed_file(namespace.file)
    packed = bits.inspect_packed(file)
    print(f"{file}: {packed.packed_bytes:,} bytes, format version {packed.version}")
    print(f"{'layer':<40} {'shape':>20} {'zero channels':>14} {'codes from..to':>15} {'bits/weight':>12} {'bytes':>9}")
    for layer in packed.layers:
        shape = "x".join(map(str, layer.shape))
        print(
            f"{layer.name:<40} {shape:>20} {layer.zero_channels:>14,} {layer.least_code:>6} ..{layer.greatest_code:>6} "
            f"{layer.bits_per_weight:>12.2f} {layer.code_bits / 8:>9,.0f}"
        )
    print(f"{packed.num_weights:,} quantised weights; {packed.num_other_values:,} other values")
    print(
        f"bytes: codes {packed.code_bytes:,}, scales {packed.scale_bytes:,}, other values {packed.tensor_bytes:,}, "
        f"header {packed.header_bytes:,}"
    )
    return EXIT_DONE


def _packed_file(path: Path) -> Path:
    """The packed model at ``path``, or in the run there. Raises: DataNotFoundError - it has none."""
    if not path.is_dir():
        return path
    if not (path / PACKED_NAME).exists():
        raise DataNotFoundError(
            f"{path} has no {PACKED_NAME}: it is no run, or one that has not finished (scrimp train --resume) or has "
            "learned no bits (scrimp pack)"
        )
    return path / PACKED_NAME
