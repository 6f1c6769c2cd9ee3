"""POST /transcribe."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from gpu_daemon.api.access import Client
from gpu_daemon.api.context import Context, context_of
from gpu_daemon.api.documents import TRANSCRIBE_BODY
from gpu_daemon.api.errors import JobFailed, documented, refusal
from gpu_daemon.api.intake import Intake, Taken, Translation
from gpu_daemon.api.line import QUIET_S, Dripping, while_there
from gpu_daemon.api.prefer import applied, preferred_wait_s
from gpu_daemon.api.rate_limit import RateLimit
from gpu_daemon.api.schemas import Accepted, Result
from gpu_daemon.catalogue.catalogue import ModelState
from gpu_daemon.faultpoints import FaultPoint, reach
from gpu_daemon.jobs.model import Job
from gpu_daemon.jobs.state import TERMINAL, JobState

router = APIRouter(tags=["jobs"])
PATH = "/transcribe"
MB = 1024 * 1024


@router.post(
    PATH,
    status_code=202,
    summary="Submit a file",
    response_model=Accepted,
    responses={
        200: {"model": Result, "description": "with `wait=true` or `Prefer: wait=N`: the result"},
        **documented(400, 401, 408, 409, 413, 415, 429, 500, 503, 507),
    },
    openapi_extra=TRANSCRIBE_BODY,
)
async def transcribe(request: Request, client: Client) -> Response:
    """Answered once the job is durable: file and row survive a crash. Poll `status_url`, or give a `callback_url`."""
    context = context_of(request)
    taken = await take(request, client)
    job = taken.job
    headers = {"Location": f"/jobs/{job.id}", "x-job-id": job.id}
    wait_s = preferred_wait_s(request)
    if wait_s is not None:
        headers |= applied(wait_s)
    if taken.replayed:
        headers["Idempotent-Replayed"] = "true"
    waits, result = taken.submission.wait or wait_s is not None, None
    if waits:
        patience_s = QUIET_S if wait_s is None else wait_s
        job, result = await while_there(request.receive, context.scheduler.outcome(job, patience_s))
        if wait_s is None and job.state not in TERMINAL:
            return Dripping(context, job, lambda job: _result(context, job, None), headers)
    answer = await _result(context, job, result) if waits and job.state in TERMINAL else _accepted(context, job)
    answer.headers.update(headers)
    return answer


async def take(
    request: Request, client: str | None, translate: Translation | None = None, *, rejoin: bool = False
) -> Taken:
    """A submission in the words of this API, or in those of another with their translation; durable when it returns.

    `rejoin`: the client says that it has sent it before. Raises what refuses it, and ClientDisconnect.
    """
    rate_limit: RateLimit = request.app.state.rate_limit
    rate_limit.check(request, client)
    length = request.headers.get("content-length", "")
    context_of(request).scheduler.admit(size_bytes=int(length) if length.isdecimal() else None)
    intake: Intake = request.app.state.intake
    taken = await intake.accept(request, client, translate, rejoin=rejoin)
    reach(FaultPoint.ANSWERING)
    return taken


async def _result(context: Context, job: Job, result: bytes | None) -> Response:
    if job.state is not JobState.COMPLETED:
        return refusal(JobFailed(job)).enveloped()
    text = await context.jobs.result(job.id) if result is None else result
    return Response(text, media_type="application/json")


def _accepted(context: Context, job: Job) -> JSONResponse:
    position = context.scheduler.position(job.id)
    said = Accepted(
        job_id=job.id,
        status=job.state.value,
        message=_message(context, job, position),
        queue_position=position,
        estimated_wait_s=context.scheduler.estimated_wait_s(job.id),
        status_url=f"/jobs/{job.id}",
        result_url=f"/jobs/{job.id}/result",
    )
    return JSONResponse(said.model_dump(), 202)


def _message(context: Context, job: Job, position: int | None) -> str:
    if job.state is not JobState.QUEUED or position is None:
        return f"the job is {job.state.value}"
    model = context.catalogue.status(job.options.model)
    if model is not None and model.state is not ModelState.READY:
        size = "" if model.size_bytes is None else f" ({model.done_bytes // MB} of {model.size_bytes // MB} MB)"
        return f"the job waits for the model {model.name}, which is {model.state.value}{size}"
    return "the job is next" if position == 0 else f"the job waits behind {position} other{'s' if position > 1 else ''}"
