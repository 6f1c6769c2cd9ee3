"""What a bug in a route comes to."""

import httpx2
import pytest
import structlog
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from gpu_daemon.api import errors
from gpu_daemon.api.envelope import Envelope
from gpu_daemon.errors import IllegalTransition
from gpu_daemon.metrics import Metrics


def app() -> FastAPI:
    made = FastAPI()
    errors.install(made, {"paths": {}})
    made.add_middleware(Envelope, metrics=Metrics())

    @made.get("/bug")
    async def bug() -> None:
        raise RuntimeError("the secret of /etc/passwd")

    @made.get("/ours")
    async def ours() -> None:
        raise IllegalTransition("a job cannot go from here to there")

    @made.get("/half")
    async def half() -> StreamingResponse:
        async def pieces() -> object:
            yield b"half"
            raise RuntimeError("in the middle")

        return StreamingResponse(pieces())  # type: ignore[arg-type]

    return made


@pytest.mark.parametrize("path", ["/bug", "/ours"])
async def test_a_bug_is_a_500_without_details_that_the_log_knows_by_its_id(path: str) -> None:
    transport = httpx2.ASGITransport(app=app())
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.get(path, headers={"x-request-id": "abc"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"] == "abc"
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert line["request_id"] == "abc"


async def test_an_answer_that_breaks_off_is_not_patched_up() -> None:
    transport = httpx2.ASGITransport(app=app())
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(RuntimeError, match="in the middle"):
            await client.get("/half")
