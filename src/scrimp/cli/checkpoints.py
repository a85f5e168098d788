"""``scrimp checkpoints``."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scrimp._core.names import nearest
from scrimp.checkpoints import CheckpointInfo, CheckpointStore, StoreReport, TensorReport
from scrimp.checkpoints.exchange import export_state, export_weights, import_checkpoint, write_weights
from scrimp.cli.flags import parse
from scrimp.cli.main import EXIT_DONE, EXIT_FAILED, Parser
from scrimp.cli.tables import show_table
from scrimp.errors import CheckpointNotFoundError, ConfigError, DataNotFoundError, FormatError
from scrimp.report.record import CONFIG_NAME
from scrimp.report.units import format_bytes, format_number

_QUANTIZED = "parametrizations.weight.original"

_HELP = """\
usage: scrimp checkpoints COMMAND STORE [...]

Look at and look after a store of checkpoints. STORE is its directory or URL, or the directory of a run.

commands:
  ls STORE                      all checkpoints, with sizes and ratios
  show STORE [STEP]             one checkpoint: bytes and error of each tensor
  verify STORE [STEP]           decode everything and compare checksums
  restore STORE FILE [--step N] the whole state as a file for torch.load
  export STORE FILE [--step N] [--as-stored]
                                the weights as a safetensors file; those of a compressed run as the plain model has
                                them, or with their quantisers as they were saved
  delete STORE STEP...          remove checkpoints; the others keep every bit
  gc STORE [--grace SECONDS]    remove files that belong to no checkpoint
  import STORE PATH... [--step N]
                                store what others wrote: safetensors, torch.save, Hugging Face Trainer folders

Without a step the newest is meant.
"""


def checkpoints_command(words: Sequence[str]) -> int:
    """Carry out one of the commands; returns the exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(_HELP, end="")
        return EXIT_DONE
    name, rest = words[0], list(words[1:])
    if name not in _COMMANDS:
        raise ConfigError(f"no command is called 'checkpoints {name}'{nearest(name, list(_COMMANDS))}")
    return _COMMANDS[name](rest)


def _ls(words: list[str]) -> int:
    namespace = _parse("ls", words)
    report = _open(namespace.store).report()
    header = ("step", "saved", "history", "ratio", "exact copy", "built upon", "")
    show_table(header, [_row(info) for info in report.checkpoints])
    print("\n".join(_sums(report)))
    return EXIT_DONE


def _show(words: list[str]) -> int:
    namespace = _parse("show", words, step=True)
    store = _open(namespace.store)
    info = store.describe(namespace.step)
    header = ("tensor", "role", "shape", "type", "raw", "stored", "ratio", "largest error", "rms error", "bound")
    show_table(header, [_tensor_row(tensor) for tensor in store.tensors(namespace.step)])
    kind = "keyframe" if info.is_keyframe else f"difference to step {info.base_step}"
    exact = f", and every bit in an exact copy of {format_bytes(info.exact_bytes)}" if info.exact_bytes else ""
    print(
        f"step {info.step}, saved {info.saved_at}: {format_bytes(info.raw_bytes)} in {format_bytes(info.history_bytes)}"
        f" ({info.history_ratio:.1f}x, {kind}){exact}"
    )
    return EXIT_DONE


def _verify(words: list[str]) -> int:
    namespace = _parse("verify", words, step=True)
    store = _open(namespace.store)
    steps = store.steps() if namespace.step is None else [namespace.step]
    broken = {}
    with _progress("decoding", len(steps)) as advance:
        for step in steps:
            try:
                store.verify(step)
            except FormatError as error:
                broken[step] = str(error)
            advance()
    for step, why in broken.items():
        print(f"step {step}: {why}", file=sys.stderr)
    print(f"{len(steps) - len(broken)} of {len(steps)} checkpoints are intact")
    return EXIT_FAILED if broken else EXIT_DONE


def _restore(words: list[str]) -> int:
    namespace = parse(_file_parser("restore"), words)
    store = _open(namespace.store)
    with _progress("decoding"):
        num_bytes = export_state(store, namespace.file, namespace.step)
    return _wrote(store, namespace, num_bytes)


def _export(words: list[str]) -> int:
    parser = _file_parser("export")
    parser.add_argument("--as-stored", action="store_true")
    namespace = parse(parser, words)
    store = _open(namespace.store)
    is_quantized = any(_QUANTIZED in tensor.path for tensor in store.tensors(namespace.step))
    run_dir = _run_of(store)
    with _progress("decoding"):
        if is_quantized and run_dir is not None and not namespace.as_stored:
            step = store.describe(namespace.step).step
            num_bytes = write_weights(_plain_weights(run_dir, step), namespace.file)
        else:
            num_bytes = export_weights(store, namespace.file, namespace.step)
    if is_quantized and run_dir is None and not namespace.as_stored:
        print(
            f"layers that learn their bits have their weights before quantisation, {_QUANTIZED}, and the tensors of "
            "their quantisers; plain weights take the directory of the run as STORE",
            file=sys.stderr,
        )
    return _wrote(store, namespace, num_bytes)


def _plain_weights(run_dir: Path, step: int) -> Mapping[str, Any]:
    """The weights of a compressed run as its plain model has them. Raises: as ``load_run``."""
    from scrimp.train.load import load_run  # noqa: PLC0415 - training's packages are for compressed runs alone

    try:
        return load_run(run_dir, step).model.state_dict()
    except DataNotFoundError as error:
        raise DataNotFoundError(f"{error}; or take the tensors as they were saved, with --as-stored") from error


def _run_of(store: CheckpointStore) -> Path | None:
    """The directory of the run that a store is of, if it is of one."""
    run_dir = Path(store.path).resolve().parent
    return run_dir if "://" not in store.path and (run_dir / CONFIG_NAME).exists() else None


def _file_parser(name: str) -> Parser:
    parser = _parser(name)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--step", type=int, metavar="N")
    return parser


def _wrote(store: CheckpointStore, namespace: argparse.Namespace, num_bytes: int) -> int:
    step = store.steps()[-1] if namespace.step is None else namespace.step
    print(f"step {step}: {namespace.file}, {format_bytes(num_bytes)}")
    return EXIT_DONE


def _delete(words: list[str]) -> int:
    parser = _parser("delete")
    parser.add_argument("steps", type=int, nargs="+", metavar="STEP")
    namespace = parse(parser, words)
    store = _open(namespace.store)
    stored = store.steps()
    if missing := [step for step in namespace.steps if step not in stored]:
        raise CheckpointNotFoundError(f"no checkpoint of step {missing[0]} in {store.path}; there are {stored}")
    with _progress("rewriting what builds upon it", len(namespace.steps)) as advance:
        for step in namespace.steps:
            store.delete(step)
            advance()
    print(f"deleted {len(namespace.steps)}; {len(store.steps())} are left, {_total(store)}")
    return EXIT_DONE


def _gc(words: list[str]) -> int:
    parser = _parser("gc")
    parser.add_argument("--grace", type=float, default=3600.0, metavar="SECONDS", help="leave younger files (3600)")
    namespace = parse(parser, words)
    store = _open(namespace.store)
    with _progress("looking for debris"):
        removed = store.collect_garbage(grace_seconds=namespace.grace)
    print(f"removed {len(removed)} files; {_total(store)} are left")
    return EXIT_DONE


def _import(words: list[str]) -> int:
    parser = _parser("import")
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    parser.add_argument("--step", type=int, metavar="N")
    namespace = parse(parser, words)
    if namespace.step is not None and len(namespace.paths) > 1:
        raise ConfigError("--step is for one PATH; several take their steps from their names")
    store = CheckpointStore(namespace.store)
    with _progress("storing", len(namespace.paths)) as advance:
        for path in namespace.paths:
            report = import_checkpoint(store, path, namespace.step)
            print(f"{path}: {report.saved}")
            for name, why in report.left_out.items():
                print(f"left out {name}: {why}", file=sys.stderr)
            advance()
    return EXIT_DONE


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "ls": _ls, "show": _show, "verify": _verify, "restore": _restore, "export": _export, "delete": _delete, "gc": _gc,
    "import": _import,
}  # fmt: skip


def _parser(name: str) -> Parser:
    parser = Parser(prog=f"scrimp checkpoints {name}", allow_abbrev=False)
    parser.add_argument("store", metavar="STORE")
    return parser


def _parse(name: str, words: list[str], *, step: bool = False) -> argparse.Namespace:
    parser = _parser(name)
    if step:
        parser.add_argument("step", type=int, nargs="?", metavar="STEP")
    return parse(parser, words)


def _open(place: str) -> CheckpointStore:
    """The store at a place, or in the run there. Raises: CheckpointNotFoundError - there is neither."""
    if "://" not in place:
        inside = Path(place) / "checkpoints"
        place = str(inside) if inside.is_dir() else place
    store = CheckpointStore(place)
    if not store.steps():
        raise CheckpointNotFoundError(f"no checkpoint in {place}")
    return store


def _row(info: CheckpointInfo) -> tuple[str, ...]:
    marks = [mark for mark, is_so in (("exact", info.is_exact), ("pinned", info.is_pinned)) if is_so]
    return (
        f"{info.step:,}", info.saved_at.replace("T", " ").removesuffix("+00:00"), format_bytes(info.history_bytes),
        f"{info.history_ratio:.1f}x", format_bytes(info.exact_bytes) if info.exact_bytes else "",
        "keyframe" if info.is_keyframe else f"{info.base_step:,}", ", ".join(marks),
    )  # fmt: skip


def _sums(report: StoreReport) -> list[str]:
    whole = (
        f"whole store: {format_bytes(report.raw_bytes)} in {format_bytes(report.stored_bytes)}, {report.ratio:.1f}x; "
        f"{report.num_checkpoints} checkpoints, {report.num_keyframes} of them keyframes, "
        f"{report.num_exact_copies} with an exact copy"
    )
    lines = [whole]
    if report.delta_ratio is not None:
        lines.append(f"a difference alone: {report.delta_ratio:.1f}x")
    if report.raw_bytes_per_weight is not None:
        lines.append(f"raw: {report.raw_bytes_per_weight:.2f} bytes for each weight of the model")
    return lines


def _tensor_row(tensor: TensorReport) -> tuple[str, ...]:
    error = tensor.error
    ratio = f"{error.raw_bytes / error.coded_bytes:.1f}x" if error.coded_bytes else ""
    shape = " x ".join(map(str, tensor.shape)) or "scalar"
    raw, stored = format_bytes(error.raw_bytes), format_bytes(error.coded_bytes)
    errors = ("", "") if error.is_exact else (format_number(error.max_abs), format_number(error.rms))
    return (
        tensor.path, tensor.role.value, shape, tensor.dtype, raw, stored, ratio, *errors, str(error.bound or "none"),
    )  # fmt: skip


def _total(store: CheckpointStore) -> str:
    return format_bytes(store.report().stored_bytes)


@contextmanager
def _progress(what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, which only shows that work goes on where it has no known ``total``; nothing elsewhere."""
    if not sys.stdout.isatty():
        yield lambda: None
        return
    from rich.progress import Progress  # noqa: PLC0415 - optional package

    with Progress(transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
