"""What people see while they wait: bars on a terminal, else a line per change. On stderr: stdout is for results."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gpu_daemon.client import JobView, ModelView

MB = 1024 * 1024
BAR_CHARACTERS = 16
ROOM_LINES = 4
"""Of the screen, for the shell's own lines."""
COLOURS = {"ready": "green", "failed": "red", "disabled": "dim"}

console = Console(stderr=True, highlight=False)


class JobDisplay:
    """`with JobDisplay() as display`, then `upload` and `job` as things move."""

    def __init__(self, on: Console = console) -> None:
        self._console = on
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}
        self._waits_for: str | None = None
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR_CHARACTERS),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[doing]}", markup=False),
            TimeElapsedColumn(),
            console=on,
        )

    def __enter__(self) -> "JobDisplay":
        if self._console.is_interactive:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """The bars stay as they are; what is printed now comes below them."""
        if self._console.is_interactive:
            self._progress.stop()

    def upload(self, name: str, sent_bytes: int, size_bytes: int) -> None:
        percent = 100 * sent_bytes / size_bytes if size_bytes else 100.0
        self._show(name, percent, "uploading", f"uploading {sent_bytes / MB:.1f} of {size_bytes / MB:.1f} MB")

    def job(self, name: str, job: JobView) -> None:
        doing = _doing(job)
        self._waits_for = None
        self._show(name, 100.0 if job.status == "completed" else job.progress, doing, doing)
        if job.ended:
            self._make_room(name, doing)

    def refused(self, name: str, reason: str) -> None:
        self._broke(name, f"refused: {reason}")

    def not_written(self, name: str, reason: str) -> None:
        self._broke(name, f"done, but not written: {reason}")

    def _broke(self, name: str, how: str) -> None:
        self._show(name, 0.0, how, how)
        self._make_room(name, how)

    def waits(self, reason: str) -> None:
        """For the daemon, which is asked again; said once, until it has answered."""
        if self._waits_for != reason:
            self._waits_for = reason
            on = self._progress.console if self._console.is_interactive else self._console
            on.print(f"{reason}; asking again", markup=False, soft_wrap=True)

    def _make_room(self, name: str, ended: str) -> None:
        """Of more files than a screen holds, those that are done go up in a line each."""
        if self._console.is_interactive and len(self._bars) > self._console.height - ROOM_LINES:
            self._progress.remove_task(self._bars.pop(name))
            self._progress.console.print(f"{name}: {ended}", markup=False, soft_wrap=True)

    def _show(self, name: str, percent: float, step: str, doing: str) -> None:
        """`doing` may change with every percent, `step` is what deserves a line of its own."""
        if self._console.is_interactive:
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name, total=100.0, doing=doing)
            self._progress.update(self._bars[name], completed=percent, doing=doing)
        elif self._said.get(name) != step:
            self._said[name] = step
            self._console.print(f"{name}: {step}", markup=False, soft_wrap=True)


def _doing(job: JobView) -> str:
    match job.status, job.queue_position:
        case "queued", None:
            return "waiting"
        case "queued", 0:
            return "waiting, next in line"
        case "queued", ahead:
            return f"waiting behind {ahead}"
        case "processing", _:
            return job.stage or "processing"
        case "failed", _:
            return f"failed: {job.error_message}"
        case "completed", _ if job.diarization_error is not None:
            return f"completed, without speakers: {job.diarization_error}"
        case status, _:
            return status


class SegmentLines:
    """Segments as they are told, each once; and all once more, after a blank line, when their speakers are found."""

    def __init__(self) -> None:
        self._printed = 0
        self._named = False

    def of(self, first: int, segments: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """They replace what was told from number `first` on."""
        if first < self._printed and not self._named and any(segment["speaker"] for segment in segments):
            yield ""
            self._printed = first
        for segment in segments[max(0, self._printed - first) :]:
            self._named = self._named or segment["speaker"] is not None
            speaker = "" if segment["speaker"] is None else f"{segment['speaker']}: "
            yield f"[{_clock(segment['start'])} --> {_clock(segment['end'])}] {speaker}{segment['text'].strip()}"
        self._printed = max(self._printed, first + len(segments))


def _clock(time_s: float) -> str:
    minutes, ms = divmod(round(time_s * 1000), 60_000)
    return f"{minutes:02d}:{ms // 1000:02d}.{ms % 1000:03d}"


def model_table(models: Iterable[ModelView]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "source", "state", "on disk"):
        table.add_column(heading, no_wrap=True)
    table.add_column(overflow="fold")
    for model in sorted(models, key=lambda model: (not model.enabled, model.name)):
        cells = (model.name, model.source, model.state, _bytes_bar(model), model.error or _speed(model))
        name, source, state, size, remark = (Text(cell) for cell in cells)
        state.stylize(COLOURS.get(model.state, "yellow"))
        table.add_row(name, source, state, size, remark)
    return table


def _bytes_bar(model: ModelView) -> str:
    if not model.enabled:
        return ""
    if model.size_bytes is None:
        return f"{model.done_bytes / MB:.0f} MB" if model.done_bytes else ""
    filled = BAR_CHARACTERS * model.done_bytes // max(model.size_bytes, 1)
    bar = "━" * filled + "─" * (BAR_CHARACTERS - filled)
    return f"{bar} {model.done_bytes / MB:.0f} of {model.size_bytes / MB:.0f} MB"


def _speed(model: ModelView) -> str:
    if model.state != "downloading" or not model.rate_bytes_per_s:
        return ""
    if model.size_bytes is None:
        return f"{model.rate_bytes_per_s / MB:.1f} MB/s"
    left_s = (model.size_bytes - model.done_bytes) / model.rate_bytes_per_s
    return f"{model.rate_bytes_per_s / MB:.1f} MB/s, {left_s:.0f} s to go"
