"""The commands. What is heavy is imported by the command that needs it: `submit` must not wait for a web framework."""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import unquote, urlsplit

import typer
from rich.console import Console

from gpu_daemon.client import GpuDaemonClientError, WhisperClient
from gpu_daemon.errors import StartupError
from gpu_daemon.terminal import JobDisplay, model_table
from gpu_daemon.transcript.formats import Format

INTERRUPTED = 130
"""128 + SIGINT, as shells say it."""
PIPED_CHARACTERS = 200
"""Where no terminal says how wide a line may be."""
SUFFIXES = {Format.TEXT: ".txt", Format.VERBOSE_JSON: ".json"}

app = typer.Typer(
    help="Speech to text on your own GPU: a queue, Whisper, callbacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Url = Annotated[str, typer.Option(help="The daemon's address.", envvar="GPU_DAEMON_URL")]
ApiKey = Annotated[str | None, typer.Option(help="Where the daemon wants one.", envvar="GPU_DAEMON_API_KEY")]
LOCAL = "http://localhost:8000"


def _source(said: str) -> Path | str:
    """A file that is there, or a URL."""
    if said.startswith(("http://", "https://")):
        return said
    path = Path(said)
    if not path.is_file():
        raise typer.BadParameter(f"File '{said}' does not exist.")
    return path


def _shown(source: Path | str) -> str:
    """The query of a URL is as good as a password."""
    return str(source) if isinstance(source, Path) else source.partition("?")[0]


def main(argv: list[str] | None = None) -> None:
    app(args=argv, prog_name="gpu_daemon")


@app.command()
def serve() -> None:
    """Run the daemon until SIGTERM or Ctrl-C. Its settings come from the environment and .env."""
    import uvloop

    from gpu_daemon import daemon, faultpoints
    from gpu_daemon.logs import configure
    from gpu_daemon.settings import load_settings

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
        typer.Argument(parser=_source, metavar="FILE|URL...", help="The daemon fetches a URL.", show_default=False),
    ],
    url: Url = LOCAL,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="One that `models` lists as ready.")] = None,
    language: Annotated[str | None, typer.Option(help="English name or ISO 639-1 code; else it is detected.")] = None,
    callback: Annotated[str | None, typer.Option(help="Address that gets one POST when the job ends.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress, then print the transcript.")] = False,
    format: Annotated[Format | None, typer.Option(help="Of the transcript. Implies --wait.")] = None,
    output: Annotated[Path | None, typer.Option(help="File; for several, a directory. Implies --wait.")] = None,
) -> None:
    """Send files to be transcribed; print the ids of the jobs or, with --wait, the transcripts.

    The exit status is 1 when a file was refused or a job did not complete.
    """
    if output is not None and len(sources) > 1 and not output.is_dir():
        raise typer.BadParameter("several files need a directory that exists", param_hint="--output")
    with _daemon_at(url, api_key) as client, JobDisplay() as display:
        jobs: dict[str, Path | str] = {}
        for source in sources:
            job_id = _send(client, display, source, model, language, callback)
            if job_id is not None:
                jobs[job_id] = source
        if not (wait or format or output):
            display.close()
            print(*jobs, sep="\n", end="\n" if jobs else "")
            raise typer.Exit(0 if len(jobs) == len(sources) else 1)
        completed = _follow(client, display, jobs)
        display.close()
        for job_id in completed:
            _hand_over(client.result(job_id, format or Format.TEXT), jobs[job_id], format or Format.TEXT, output)
    raise typer.Exit(0 if len(completed) == len(sources) else 1)


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
    model: str | None,
    language: str | None,
    callback_url: str | None,
) -> str | None:
    """The job's id; None, and said why, when this one was refused."""
    name = _shown(source)
    try:
        return client.submit(
            source,
            model=model,
            language=language,
            callback_url=callback_url,
            on_upload_progress=lambda sent, size: display.upload(name, sent, size),
        )
    except OSError as error:
        display.refused(name, error.strerror or str(error))
    except GpuDaemonClientError as error:
        if error.status is None:
            raise
        display.refused(name, error.message)
    return None


def _follow(client: WhisperClient, display: JobDisplay, jobs: dict[str, Path | str]) -> list[str]:
    """Wait for all; the ids of those that completed, in the order they were sent."""
    completed = set()
    for job in client.watch(*jobs):
        display.job(_shown(jobs[job.job_id]), job)
        if job.status == "completed":
            completed.add(job.job_id)
    return [job_id for job_id in jobs if job_id in completed]


def _hand_over(transcript: str, source: Path | str, format: Format, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(transcript if transcript.endswith("\n") else f"{transcript}\n")
    else:
        path = source if isinstance(source, Path) else Path(unquote(urlsplit(source).path).strip("/") or "audio")
        name = path.with_suffix(SUFFIXES.get(format, f".{format.value}")).name
        (output / name if output.is_dir() else output).write_text(transcript, encoding="utf-8")


@contextmanager
def _daemon_at(url: str, api_key: str | None) -> Iterator[WhisperClient]:
    try:
        with WhisperClient(url, api_key) as client:
            yield client
    except GpuDaemonClientError as error:
        _give_up(error.message)
    except KeyboardInterrupt:
        print("interrupted; jobs that were accepted go on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _give_up(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(1)
