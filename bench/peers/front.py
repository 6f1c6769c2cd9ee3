"""A front like ours, as small as it can be, before Celery or RQ: takes an upload, queues it, answers with the result.

`uvicorn bench.peers.front:app`, with PEERS_QUEUE=celery or rq, PEERS_REDIS, and PEERS_FILES, a directory.
"""

import asyncio
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Queue
from rq.results import Result
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bench.peers.work import REDIS, transcribe, work

FILES = Path(os.environ["PEERS_FILES"])
TIMEOUT_S = 60
threads = ThreadPoolExecutor(64)  # more than there are clients: nobody waits for a thread
rq_queue = Queue(connection=Redis.from_url(REDIS, socket_timeout=None))


def by_celery(path: str) -> dict[str, Any]:
    said: dict[str, Any] = transcribe.delay(path).get(timeout=TIMEOUT_S)
    return said


def by_rq(path: str) -> dict[str, Any]:
    result = rq_queue.enqueue(work, path).latest_result(timeout=TIMEOUT_S)
    assert result is not None
    assert result.type is Result.Type.SUCCESSFUL
    said: dict[str, Any] = result.return_value
    return said


def store_and_queue(audio: bytes) -> dict[str, Any]:
    path = FILES / uuid.uuid4().hex
    path.write_bytes(audio)
    accepted_at = time.time()
    said = (by_celery if os.environ["PEERS_QUEUE"] == "celery" else by_rq)(str(path))
    path.unlink()
    return said | {"started_after_s": said["started_at"] - accepted_at}


async def accept(request: Request) -> JSONResponse:
    async with request.form() as form:
        upload = form["file"]
        assert isinstance(upload, UploadFile)
        audio = await upload.read()
    return JSONResponse(await asyncio.get_running_loop().run_in_executor(threads, store_and_queue, audio))


app = Starlette(routes=[Route("/transcribe", accept, methods=["POST"])])
