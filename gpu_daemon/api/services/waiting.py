"""Routes that answer with the transcript itself: their client waits for it, and its job is cancelled if it hangs up."""

from collections.abc import Awaitable, Callable

from fastapi import Request
from starlette.responses import Response

from gpu_daemon.api.attendance import Attendance
from gpu_daemon.api.context import context_of
from gpu_daemon.api.errors import JobFailed, Refusal, refusal
from gpu_daemon.api.intake import Translation
from gpu_daemon.jobs.model import Job
from gpu_daemon.jobs.state import JobState

Answer = Callable[[Job, str], Awaitable[Response]]
"""Of a job that is completed, and its result as it is stored."""
Refuse = Callable[[Request, Refusal], Awaitable[Response]]


async def _enveloped(_: Request, refused: Refusal) -> Response:
    return refused.enveloped()


async def answer_when_completed(
    request: Request,
    client: str | None,
    answer: Answer,
    *,
    translate: Translation | None = None,
    refuse: Refuse = _enveloped,
) -> Response:
    """`refuse` answers when the job has not completed. Raises what refuses the submission, and ClientDisconnect."""
    attendance: Attendance = request.app.state.attendance
    attended = await attendance.take(request, client, translate)

    async def when_ended(job: Job) -> Response:
        text = await context_of(request).jobs.result(job.id) if job.state is JobState.COMPLETED else None
        return await refuse(request, refusal(JobFailed(job))) if text is None else await answer(job, text)

    return attended.answer(when_ended)
