"""A run's record on disk: ``config.json``, ``metrics.jsonl`` and ``summary.json`` in one directory.

``metrics.jsonl`` holds one JSON object per line, always with ``event``, ``step`` (optimizer steps done), ``epoch``
(epochs done, may be fractional) and ``seconds`` (training seconds so far). It is only ever appended to, so a run that
is killed loses at most the line being written.
"""

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from scrimp._core.atomic_files import atomic_write, write_json
from scrimp.errors import DataNotFoundError, FormatError
from scrimp.report.summary import Summary

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"
SUMMARY_NAME = "summary.json"
_OF_THE_END = ("visited", "compression")  # events of a run whose training is over


class RunStatus(enum.Enum):
    """How a run ended, as far as its record tells."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    UNFINISHED = "unfinished"


class Point(NamedTuple):
    """One value of one metric and when it was taken."""

    step: int
    epoch: float
    seconds: float
    value: float


@dataclass(frozen=True)
class RunRecord:
    """Everything that is on record about a run; ``summary`` is None until the run has finished."""

    run_dir: Path
    config: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    summary: Summary | None

    def events(self, event: str) -> list[Mapping[str, Any]]:
        """The lines of one kind (``step``, ``evaluation``, ``epoch``, ``checkpoint``, ``note``), in order."""
        return [line for line in self.metrics if line["event"] == event]

    def series(self, event: str, key: str) -> list[Point]:
        """The values of ``key`` over the run; lines without it are left out, and null is NaN.

        Raises: FormatError - a value is not a number.
        """
        return [
            Point(line["step"], line["epoch"], line["seconds"], self._number(line, key))
            for line in self.events(event)
            if key in line
        ]

    def last(self, event: str, key: str) -> float | None:
        """The newest value of ``key``, or None when it was never recorded."""
        points = self.series(event, key)
        return points[-1].value if points else None

    @property
    def status(self) -> RunStatus:
        """Finished when there is a summary; otherwise what the last line's ``status`` says, else unfinished."""
        if self.summary is not None:
            return RunStatus.FINISHED
        last_word = self.metrics[-1].get("status") if self.metrics else None
        known = {status.value: status for status in RunStatus}
        return known.get(last_word, RunStatus.UNFINISHED) if isinstance(last_word, str) else RunStatus.UNFINISHED

    def _number(self, line: Mapping[str, Any], key: str) -> float:
        value = line[key]
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            path = self.run_dir / METRICS_NAME
            raise FormatError(f"{path}: {key} of the {line['event']} at step {line['step']} is {value!r}, not a number")
        return float(value)


class RunWriter:
    """Writes a run's record. Use it as a context manager or call ``close``.

    Opening one changes nothing: the directory is made and the first line appended when something is written. Each line
    is flushed to the operating system, not synced to the disk: a killed process loses nothing, a power cut may lose
    lines.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.run_dir = Path(run_dir)
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.json`` in one piece."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.run_dir / CONFIG_NAME, _strict(config))

    def write_summary(self, summary: Summary) -> None:
        """Write ``summary.json`` in one piece; from then on the run counts as finished."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.run_dir / SUMMARY_NAME, _strict(summary.to_dict()))

    def write(self, event: str, *, step: int, epoch: float, seconds: float, **values: Any) -> None:
        """Append one line. ``values`` are JSON values; a float that is not finite is stored as null."""
        assert math.isfinite(epoch + seconds), "a line has to say when it was written"
        line = {"event": event, "step": step, "epoch": epoch, "seconds": seconds, **values}
        encoded = json.dumps(_strict(line), allow_nan=False, separators=(", ", ": ")).encode()
        file = self._open()
        file.write(encoded + b"\n")
        file.flush()

    def note(self, text: str, *, step: int, epoch: float, seconds: float, status: RunStatus | None = None) -> None:
        """Append a remark; ``status`` says how the run ended, for example interrupted, if this is its last line."""
        extra = {} if status is None else {"status": status.value}
        self.write("note", step=step, epoch=epoch, seconds=seconds, text=text, **extra)

    def truncate_after(self, step: int) -> int:
        """Forget what came after ``step``, for a run that resumes there; return the number of lines dropped.

        A half-written last line goes too, and so do a summary of the longer run and the lines that are written when
        training is over: whoever resumes at the last step writes them anew. The rest is kept byte for byte.

        Raises: FormatError - a line that is not the last is corrupt; nothing is changed.
        """
        self.close()
        path = self.run_dir / METRICS_NAME
        raw_lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        parsed = _parse_lines(path, raw_lines)
        (self.run_dir / SUMMARY_NAME).unlink(missing_ok=True)
        lines = zip(raw_lines, parsed, strict=False)
        kept = [raw for raw, line in lines if line["step"] <= step and line["event"] not in _OF_THE_END]
        num_dropped = len(raw_lines) - len(kept)
        if num_dropped or (raw_lines and not raw_lines[-1].endswith(b"\n")):
            with atomic_write(path) as file:
                file.write(b"".join(raw.rstrip(b"\r\n") + b"\n" for raw in kept))
        return num_dropped

    def close(self) -> None:
        """Close the file; writing again opens it anew."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        if self._file is None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            path = self.run_dir / METRICS_NAME
            _cut_half_line(path)
            self._file = path.open("ab")
        return self._file


def read_run(run_dir: Path | str) -> RunRecord:
    """The record of the run in ``run_dir``, finished or not.

    Keys that this version does not know are kept in ``config`` and ``metrics``. A half-written last line, which a
    killed run may leave, is ignored.

    Raises: DataNotFoundError - there is no run in that directory. FormatError - a file of the record is corrupt.
    """
    directory = Path(run_dir)
    if not directory.is_dir():
        raise DataNotFoundError(f"no run at {directory}: there is no such directory")
    if not (directory / CONFIG_NAME).is_file():
        raise DataNotFoundError(
            f"{directory} is not a run: it has no {CONFIG_NAME}; name a directory that `scrimp train --out` has made"
        )
    config = _read_object(directory / CONFIG_NAME)
    metrics_path, summary_path = directory / METRICS_NAME, directory / SUMMARY_NAME
    raw_lines = metrics_path.read_bytes().splitlines(keepends=True) if metrics_path.exists() else []
    summary = None
    if summary_path.exists():
        values = _read_object(summary_path)
        try:
            summary = Summary.from_dict(values)
        except FormatError as error:
            raise FormatError(f"{summary_path}: {error}") from None
    return RunRecord(directory, config, tuple(_parse_lines(metrics_path, raw_lines)), summary)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__} where a JSON object was expected")
    return value


def _parse_lines(path: Path, raw_lines: list[bytes]) -> list[dict[str, Any]]:
    """The parsed lines, without a last line that a killed run left half-written."""
    lines = []
    for number, raw in enumerate(raw_lines, start=1):
        try:
            lines.append(_parse_line(raw))
        except ValueError as error:
            if number == len(raw_lines) and not raw.endswith(b"\n"):
                break
            raise FormatError(
                f"{path}, line {number}: {error}; the line reads {raw[:80]!r}. Mend or remove that line"
            ) from None
    return lines


def _parse_line(raw: bytes) -> dict[str, Any]:
    line = json.loads(raw)
    if not isinstance(line, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one kind of error for the caller above
    for key, kind in (("event", str), ("step", int), ("epoch", (int, float)), ("seconds", (int, float))):
        if not isinstance(line.get(key), kind) or isinstance(line[key], bool):
            problem = f"{key} is {line[key]!r}" if key in line else f"{key} is missing"
            raise ValueError(problem)  # noqa: TRY004 - as above
    return line


def _cut_half_line(path: Path) -> None:
    """Make the file end with a line end: complete a whole last line, drop one that was only half written."""
    if not path.exists() or not (content := path.read_bytes()) or content.endswith(b"\n"):
        return
    start = content.rfind(b"\n") + 1
    try:
        _parse_line(content[start:])
    except ValueError:
        kept = content[:start]
    else:
        kept = content + b"\n"
    with atomic_write(path) as file:
        file.write(kept)


def _strict(value: Any) -> Any:
    """``value`` as strict JSON: floats that are not finite become null, tuples lists, paths texts."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, Path) else value
