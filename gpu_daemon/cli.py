"""The commands. What is heavy is imported by the command that needs it: `submit` must not wait for a web framework."""

import asyncio
import gc
import glob
import itertools
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import unquote, urlsplit

import typer
from rich.console import Console

from gpu_daemon import __version__
from gpu_daemon.client import GpuDaemonClientError, Retries, WhisperClient
from gpu_daemon.client.calls import is_url
from gpu_daemon.client.views import job_view
from gpu_daemon.errors import StartupError
from gpu_daemon.terminal import JobDisplay, SegmentLines, model_table
from gpu_daemon.transcript.formats import Format

INTERRUPTED = 130
"""128 + SIGINT, as shells say it."""
PIPED_CHARACTERS = 200
"""Where no terminal says how wide a line may be."""
SUFFIXES = {Format.TEXT: ".txt", Format.VERBOSE_JSON: ".json", Format.DIARIZED_JSON: ".json"}

app = typer.Typer(
    help="Speech to text on your own GPU: a queue, Whisper, callbacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Url = Annotated[str, typer.Option(help="The daemon's address.", envvar="GPU_DAEMON_URL")]
ApiKey = Annotated[str | None, typer.Option(help="Where the daemon wants one.", envvar="GPU_DAEMON_API_KEY")]
LOCAL = "http://localhost:8000"


def _sources(said: str) -> list[Path | str]:
    """A URL, a file that is there, or those that fit a pattern that the shell has left as it was."""
    if is_url(said):
        return [said]
    path = Path(said)
    if path.is_file():
        return [path]
    if path.is_dir():
        raise typer.BadParameter(f"'{said}' is a directory; name its files, for example '{path / '*'}'.")
    found = sorted(Path(name) for name in glob.glob(said, recursive=True) if Path(name).is_file())
    if not found:
        raise typer.BadParameter(f"File '{said}' does not exist.")
    return list(found)


def _shown(source: Path | str) -> str:
    """The query of a URL is as good as a password."""
    return str(source) if isinstance(source, Path) else source.partition("?")[0]


def main(argv: list[str] | None = None) -> None:
    app(args=argv, prog_name="gpu_daemon")


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve() -> None:
    """Run the daemon until SIGTERM or Ctrl-C. Its settings come from the environment and .env."""
    gc.disable()  # what is imported stays: to look through it again and again takes 0.2 of 1.6 s
    import uvloop

    from gpu_daemon import daemon, faultpoints
    from gpu_daemon.logs import configure
    from gpu_daemon.settings import load_settings

    gc.enable()
    try:
        settings = load_settings()
        configure(settings.log_level, settings.log_format)
        faultpoints.arm(os.environ.get(faultpoints.VARIABLE))
        status = uvloop.run(daemon.serve(settings))
    except StartupError as error:
        _give_up(error.message)
    raise typer.Exit(status)


@app.command()
def submit(
    sources: Annotated[
        list[Any],
        typer.Argument(
            parser=_sources, metavar="FILE|PATTERN|URL...", help="The daemon fetches a URL.", show_default=False
        ),
    ],
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="One that `models` lists as ready.")] = None,
    language: Annotated[str | None, typer.Option(help="English name or ISO 639-1 code; else it is detected.")] = None,
    diarize: Annotated[bool, typer.Option("--diarize", help="Who speaks when.")] = False,
    speakers: Annotated[int | None, typer.Option(help="How many speak, if you know. Implies --diarize.")] = None,
    known_speaker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="2 to 10 s of a voice whose name is known; up to 4 times. Implies --diarize."
        ),
    ] = None,
    callback: Annotated[str | None, typer.Option(help="Address that gets one POST when the job ends.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress, then print the transcript.")] = False,
    format: Annotated[Format | None, typer.Option(help="Of the transcript. Implies --wait.")] = None,
    output: Annotated[Path | None, typer.Option(help="File; for several, a directory. Implies --wait.")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Made if need be; a file per transcript, when it is done. Implies --wait.")
    ] = None,
) -> None:
    """Send files to be transcribed; print the ids of the jobs or, with --wait, the transcripts.

    The exit status is 1 when a file was refused or a job did not complete.
    """
    files: list[Path | str] = list(dict.fromkeys(itertools.chain.from_iterable(sources)))
    output = _output(output, output_dir, several=len(files) > 1)
    written = Written(output, format or Format.TEXT, files)
    fields = {"model": model, "language": language, "callback_url": callback}
    voices = _voices(known_speaker or [])
    if diarize or speakers is not None or voices:
        fields |= {"diarize": "true", "num_speakers": None if speakers is None else str(speakers)}
    display = JobDisplay()
    jobs: dict[str, Path | str] = {}
    going_on: set[str] = set()
    with _daemon_at(url, api_key, display.waits, going_on) as client, display:
        for source in files:
            job_id = _send(client, display, source, voices, fields)
            if job_id is not None:
                jobs[job_id] = source
                going_on.add(job_id)
        if not (wait or format or output):
            display.close()
            print(*jobs, sep="\n", end="\n" if jobs else "")
            raise typer.Exit(0 if len(jobs) == len(files) else 1)
        completed = set()
        for job in client.watch(*jobs):
            display.job(_shown(jobs[job.job_id]), job)
            if job.status == "completed":
                transcript = None if output is None else client.result(job.job_id, written.format.value)
                try:
                    if transcript is not None:
                        written.write(jobs[job.job_id], transcript)
                    completed.add(job.job_id)
                except OSError as error:
                    display.not_written(_shown(jobs[job.job_id]), f"{output}: {error.strerror}")
            if job.ended:
                going_on.discard(job.job_id)
        display.close()
        if output is None:
            for job_id in jobs:
                if job_id in completed:
                    _print(client.result(job_id, written.format.value))
    raise typer.Exit(0 if len(completed) == len(files) else 1)


@app.command()
def watch(
    job: Annotated[str, typer.Argument(help="The id of a job.", show_default=False)],
    url: Url = LOCAL,
    api_key: ApiKey = None,
) -> None:
    """Follow a job to its end: its text as it is decoded, with its times; and once more with speakers, where they are
    known at the end only. The exit status is 1 unless it completes.
    """
    lines = SegmentLines()
    status = ""
    display = JobDisplay()
    with _daemon_at(url, api_key, display.waits) as client, display:
        for event in client.events(job):
            if event.kind == "segments":
                for line in lines.of(event.json["first"], event.json["segments"]):
                    _print(line)
            else:
                status = event.json["status"]
                display.job(event.json["file_name"], job_view(event.json))
    raise typer.Exit(0 if status == "completed" else 1)


@app.command()
def models(url: Url = LOCAL, api_key: ApiKey = None) -> None:
    """The daemon's models: which are enabled, on disk, downloading, or failed and why."""
    with _daemon_at(url, api_key) as client:
        Console(width=None if sys.stdout.isatty() else PIPED_CHARACTERS).print(model_table(client.models()))


@app.command()
def doctor() -> None:
    """Say in words what would keep the daemon from working on this machine, and what to do about it."""
    from gpu_daemon.doctor.examination import examine

    raise typer.Exit(asyncio.run(examine()))


@app.command()
def demo(
    data_dir: Annotated[
        Path | None, typer.Option(help="Where its daemon keeps its data; else demo-data in the checkout.")
    ] = None,
) -> None:
    """Start a daemon, send it a sample, watch it work; show the transcript and the callback."""
    from gpu_daemon.demo.tour import show

    try:
        good = show(data_dir)
    except (StartupError, GpuDaemonClientError) as error:
        _give_up(error.message)
    raise typer.Exit(0 if good else 1)


def _send(
    client: WhisperClient,
    display: JobDisplay,
    source: Path | str,
    voices: dict[str, Path],
    fields: dict[str, str | None],
) -> str | None:
    """The job's id; None, and said why, when this one was refused."""
    name = _shown(source)
    try:
        return client.submit(
            source,
            on_upload_progress=lambda sent, size: display.upload(name, sent, size),
            known_speakers=voices,
            **fields,
        )
    except OSError as error:
        display.refused(name, error.strerror or str(error))
    except GpuDaemonClientError as error:
        if error.status is None:
            raise
        display.refused(name, error.message)
    return None


def _voices(said: list[str]) -> dict[str, Path]:
    """Raises BadParameter."""
    voices = {}
    for each in said:
        name, equals, file = each.partition("=")
        if not (name and equals and Path(file).is_file()):
            raise typer.BadParameter(f"{each!r} is not NAME=FILE with a file that exists", param_hint="--known-speaker")
        voices[name] = Path(file)
    return voices


def _output(output: Path | None, output_dir: Path | None, *, several: bool) -> Path | None:
    """Raises BadParameter."""
    if output_dir is None:
        if output is not None and several and not output.is_dir():
            raise typer.BadParameter("several files need a directory that exists", param_hint="--output")
        if output is not None and not output.parent.is_dir():
            raise typer.BadParameter(f"there is no directory {output.parent}", param_hint="--output")
        return output
    if output is not None:
        raise typer.BadParameter("--output is for one file, --output-dir for many; give one of them")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{output_dir}: {error.strerror}", param_hint="--output-dir") from error
    return output_dir


class Written:
    """Transcripts as files: `talk.mp3` becomes `talk.srt`, and a second talk `talk-2.srt`, whichever is done first."""

    def __init__(self, output: Path | None, format: Format, sources: Sequence[Path | str]) -> None:
        self.format = format
        self._output = output
        self._suffix = SUFFIXES.get(format, f".{format.value}")
        self._names: dict[Path | str, str] = {}
        taken: set[str] = set()
        for source in sources:
            stem = _stem(source)
            names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
            self._names[source] = next(name for name in names if name not in taken)
            taken.add(self._names[source])

    def write(self, source: Path | str, transcript: str) -> None:
        """Raises OSError."""
        assert self._output is not None
        name = f"{self._names[source]}{self._suffix}"
        path = self._output / name if self._output.is_dir() else self._output
        path.write_text(transcript, encoding="utf-8")


def _stem(source: Path | str) -> str:
    return (source if isinstance(source, Path) else Path(unquote(urlsplit(source).path).strip("/") or "audio")).stem


def _print(transcript: str) -> None:
    sys.stdout.write(transcript if transcript.endswith("\n") else f"{transcript}\n")
    sys.stdout.flush()


@contextmanager
def _daemon_at(
    url: str, api_key: str | None, waits: Callable[[str], None] | None = None, going_on: Collection[str] = ()
) -> Iterator[WhisperClient]:
    """`waits` is told why the daemon is asked again; `going_on`: jobs that it does whoever waits for them."""
    told = None if waits is None else lambda error, _: waits(error.message)
    try:
        with WhisperClient(url, api_key, retries=Retries(told=told)) as client:
            yield client
    except GpuDaemonClientError as error:
        _give_up(f"{error.message}{_named(going_on)}")
    except KeyboardInterrupt:
        print(f"interrupted; jobs that were accepted go on{_named(going_on)}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _named(going_on: Collection[str]) -> str:
    """A line for each that `watch` can follow."""
    return "".join(f"\naccepted: {job_id}" for job_id in sorted(going_on))


def _give_up(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(1)
