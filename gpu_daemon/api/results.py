"""The transcript of a job that is done, in any format, as often as anybody asks."""

import asyncio
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from gpu_daemon import __version__
from gpu_daemon.api.access import Client, own_job
from gpu_daemon.api.context import context_of
from gpu_daemon.api.errors import documented
from gpu_daemon.api.jobs import JobIdPath
from gpu_daemon.errors import Conflict
from gpu_daemon.jobs.model import JobId
from gpu_daemon.jobs.state import JobState
from gpu_daemon.transcript.cues import CueOptions, have_words
from gpu_daemon.transcript.formats import Format, parse_result, render
from gpu_daemon.transcript.model import Transcript

router = APIRouter(tags=["jobs"])
MOST = 1000
CONTENT_TYPES = {
    Format.JSON: "application/json",
    Format.VERBOSE_JSON: "application/json",
    Format.TEXT: "text/plain; charset=utf-8",
    Format.SRT: "application/x-subrip; charset=utf-8",
    Format.VTT: "text/vtt; charset=utf-8",
    Format.TSV: "text/tab-separated-values; charset=utf-8",
    Format.DIARIZED_JSON: "application/json",
}
SUBTITLES = frozenset({Format.SRT, Format.VTT})
KEPT = {"Cache-Control": "private, no-cache"}
"""By whoever asked, who asks again whether it still holds."""
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "it is the one that `If-None-Match` names"}}


async def _cue_options(
    max_line_width: Annotated[
        int | None, Query(ge=1, le=MOST, description="srt, vtt: characters in a line; needs the times of words")
    ] = None,
    max_line_count: Annotated[
        int | None, Query(ge=1, le=MOST, description="srt, vtt: lines in a cue, with `max_line_width`")
    ] = None,
    max_words_per_line: Annotated[
        int | None, Query(ge=1, le=MOST, description="srt, vtt: without both of the above")
    ] = None,
    highlight_words: Annotated[
        bool, Query(description="srt, vtt: underline each word as it is said; needs the times of words")
    ] = False,
) -> CueOptions:
    """Awaits nothing, but is no plain function: those are run in a thread."""
    return CueOptions(
        max_line_width=max_line_width,
        max_line_count=max_line_count,
        max_words_per_line=max_words_per_line,
        highlight_words=highlight_words,
    )


@router.get(
    "/jobs/{job_id}/result",
    summary="The transcript, in any format",
    response_class=Response,
    responses={
        200: {
            "description": "the transcript; `ETag` names it for good",
            "content": {kind.split(";")[0]: {} for kind in CONTENT_TYPES.values()},
        },
        **NOT_MODIFIED,
        **documented(400, 401, 404, 409, 503),
    },
)
async def get_result(
    request: Request,
    client: Client,
    job_id: JobIdPath,
    options: Annotated[CueOptions, Depends(_cue_options)],
    format: Annotated[
        Format,
        Query(description="`json` is the text alone, `verbose_json` everything, `diarized_json` as OpenAI has it"),
    ] = Format.VERBOSE_JSON,
) -> Response:
    context = context_of(request)
    job = await own_job(context, client, job_id)
    headers = KEPT | {"ETag": _etag(job.id, format, options)}
    if job.state is JobState.COMPLETED and _named(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    text = await context.jobs.result(job.id)
    if text is None:
        raise Conflict(f"the job is {job.state.value}: it has no result", code="no_result")
    if format is not Format.VERBOSE_JSON:
        text = await asyncio.to_thread(_rendered, format, text, options)
    return Response(text, headers=headers | {"Content-Type": CONTENT_TYPES[format]})


def rendered(format: Format, transcript: Transcript, options: CueOptions) -> str:
    """Raises Conflict where `options` need the times of words and there are none."""
    if format in SUBTITLES and options.need_words and not have_words(transcript.segments):
        raise Conflict(
            "lines and highlighted words need the times of the words: send the job with timestamp_granularity=word",
            code="no_words",
        )
    return render(format, transcript, options)


def _rendered(format: Format, stored: str, options: CueOptions) -> str:
    """A long result takes a while to read: in a thread."""
    return rendered(format, parse_result(stored), options)


def _etag(job_id: JobId, format: Format, options: CueOptions) -> str:
    """A result never changes; how we write it may, from version to version."""
    said = repr((job_id, format.value, options, __version__))
    return f'"{hashlib.sha256(said.encode()).hexdigest()[:32]}"'


def _named(request: Request, etag: str) -> bool:
    """By If-None-Match (RFC 9110, 13.1.2)."""
    named = {name.strip().removeprefix("W/") for name in ",".join(request.headers.getlist("if-none-match")).split(",")}
    return bool({etag, "*"} & named)
