import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from gpu_daemon.client import JobView, ModelView
from gpu_daemon.terminal import JobDisplay, SegmentLines, model_table

MB = 1024 * 1024


def job(
    status: str,
    *,
    stage: str | None = None,
    progress: float = 0.0,
    queue_position: int | None = None,
    error_message: str | None = None,
) -> JobView:
    return JobView(
        job_id="7",
        status=status,
        stage=stage,
        progress=progress,
        queue_position=queue_position,
        error_code=None,
        error_message=error_message,
        json={},
    )


def model(
    *,
    enabled: bool = True,
    state: str = "ready",
    size_bytes: int | None = None,
    done_bytes: int = 0,
    rate_bytes_per_s: float | None = None,
    error: str | None = None,
) -> ModelView:
    return ModelView(
        name="base",
        source="whisper",
        enabled=enabled,
        state=state,
        size_bytes=size_bytes,
        done_bytes=done_bytes,
        rate_bytes_per_s=rate_bytes_per_s,
        error=error,
    )


def test_that_the_daemon_is_waited_for_is_said_once_until_it_answers() -> None:
    out = io.StringIO()
    with JobDisplay(Console(file=out, width=40)) as display:
        for _ in range(3):
            display.waits("no daemon answers [1]")
            display.upload("talk.mp3", 1, 2)
        display.job("talk.mp3", job("queued", queue_position=0))
        display.waits("no daemon answers [1]")
    away = "no daemon answers [1]; asking again"
    assert out.getvalue().splitlines() == [
        away,
        "talk.mp3: uploading",
        "talk.mp3: waiting, next in line",
        away,
    ]


def test_without_a_terminal_each_step_is_a_line_and_said_once() -> None:
    out = io.StringIO()
    with JobDisplay(Console(file=out, width=40)) as display:
        for sent_bytes in (0, MB, 2 * MB):
            display.upload("talk [1].mp3", sent_bytes, 2 * MB)
        display.job("talk [1].mp3", job("queued", queue_position=2))
        display.job("talk [1].mp3", job("processing", stage="transcribing", progress=10))
        display.job("talk [1].mp3", job("processing", stage="transcribing", progress=60))
        display.job("talk [1].mp3", job("completed", progress=100))
    assert out.getvalue().splitlines() == [
        "talk [1].mp3: uploading",
        "talk [1].mp3: waiting behind 2",
        "talk [1].mp3: transcribing",
        "talk [1].mp3: completed",
    ]


def test_on_a_terminal_there_are_bars() -> None:
    out = io.StringIO()
    with JobDisplay(Console(file=out, force_terminal=True, width=100, color_system=None)) as display:
        display.upload("talk.mp3", MB, 2 * MB)
        display.job("talk.mp3", job("processing", stage="transcribing", progress=60))
    assert re.search(r"talk\.mp3 ━.* 60 % transcribing", out.getvalue())


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (job("queued", queue_position=0), "waiting, next in line"),
        (job("queued"), "waiting"),
        (job("processing"), "processing"),
        (job("cancelled"), "cancelled"),
        (job("failed", error_message="the audio has no sound"), "failed: the audio has no sound"),
        (job("processing", stage="diarizing"), "diarizing"),
        (
            replace(job("completed"), json={"result": {"diarization": {"error": "the pipeline is gated"}}}),
            "completed, without speakers: the pipeline is gated",
        ),
        (replace(job("completed"), json={"result": {"diarization": None}}), "completed"),
    ],
)
def test_a_job_in_words(seen: JobView, said: str) -> None:
    out = io.StringIO()
    JobDisplay(Console(file=out)).job("a", seen)
    assert out.getvalue() == f"a: {said}\n"


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (model(state="ready", size_bytes=145 * MB, done_bytes=145 * MB), "━━━━━━━━━━━━━━━━ 145 of 145 MB"),
        (
            model(state="downloading", size_bytes=100 * MB, done_bytes=50 * MB, rate_bytes_per_s=5 * MB),
            "━━━━━━━━──────── 50 of 100 MB  5.0 MB/s, 10 s to go",
        ),
        (model(state="downloading", done_bytes=50 * MB, rate_bytes_per_s=5 * MB), "50 MB 5.0 MB/s"),
        (
            model(state="failed", error="[Errno 113] no route to host; next try in 8 s"),
            "[Errno 113] no route to host; next try in 8 s",
        ),
    ],
)
def test_a_model_with_its_bytes(seen: ModelView, said: str) -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(model_table([seen]))
    row = " ".join(out.getvalue().splitlines()[1].split())
    assert row == " ".join(f"base whisper {seen.state} {said}".split())


def test_a_disabled_model_has_no_bar() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(model_table([model(enabled=False, state="disabled", size_bytes=MB)]))
    assert out.getvalue().splitlines()[1].split() == ["base", "whisper", "disabled"]


def test_segments_are_printed_once_and_once_more_with_their_speakers() -> None:
    def heard(*said: tuple[float, str, str | None]) -> list[dict[str, object]]:
        return [
            {"start": start, "end": start + 1, "text": f" {text}", "speaker": speaker} for start, text, speaker in said
        ]

    lines = SegmentLines()
    plain = heard((0.0, "one", None), (61.5, "two", None))
    assert list(lines.of(0, plain[:1])) == ["[00:00.000 --> 00:01.000] one"]
    assert list(lines.of(0, plain)) == ["[01:01.500 --> 01:02.500] two"]  # another attempt
    spoken = heard((0.0, "one", "Ada"), (61.5, "t", "Ada"), (62.0, "wo", "Eve"))
    assert list(lines.of(0, spoken[:2])) == [
        "",
        "[00:00.000 --> 00:01.000] Ada: one",
        "[01:01.500 --> 01:02.500] Ada: t",
    ]
    assert list(lines.of(2, spoken[2:])) == ["[01:02.000 --> 01:03.000] Eve: wo"]
    by_channel = SegmentLines()
    assert len(list(by_channel.of(0, spoken[:1]))) == 1
    assert list(by_channel.of(0, spoken)) == ["[01:01.500 --> 01:02.500] Ada: t", "[01:02.000 --> 01:03.000] Eve: wo"]


def test_more_files_than_a_screen_holds() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, height=10, legacy_windows=False, highlight=False)
    with JobDisplay(console) as display:
        for number in range(20):
            display.job(f"{number}.wav", job("processing", stage="transcribing", progress=50.0))
        for number in range(20):
            display.job(f"{number}.wav", job("completed"))
        left = len(display._progress.tasks)
    assert left < 10
    assert "0.wav: completed" in file.getvalue()
