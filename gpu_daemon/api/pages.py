"""The page, the API's documentation, and their assets: all from the daemon's own disk."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent.parent.parent / "static"
READERS_POLICY = (
    # Both readers of the API's description style themselves from script, and search in a worker.
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
FOR_GOOD = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"


class _Assets(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        """Vendored files have their version in their path and never change."""
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = FOR_GOOD if path.startswith("vendor/") else ASK_AGAIN
        return response


def install(app: FastAPI, document: dict[str, Any]) -> None:
    app.mount("/static", _Assets(directory=STATIC), name="static")
    for path, name, policy in (
        ("/", "index.html", None),
        ("/docs", "docs.html", READERS_POLICY),
        ("/redoc", "redoc.html", READERS_POLICY),
    ):
        app.add_route(path, _page(STATIC / name, policy), include_in_schema=False)

    async def openapi(_: Request) -> Response:
        return JSONResponse(document, headers={"Cache-Control": ASK_AGAIN})

    app.add_route("/openapi.json", openapi, include_in_schema=False)


def _page(file: Path, policy: str | None) -> Any:
    headers = {"Cache-Control": ASK_AGAIN} | ({} if policy is None else {"Content-Security-Policy": policy})

    async def page(_: Request) -> Response:
        return FileResponse(file, headers=headers)

    return page
