"""The HTTP server: routes of ``api``, pages of ``pages``, errors as problem+json, one API key, limits.

One server owns one directory of runs. It is meant for one team on one machine: there are no users and no roles.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dynosim import __version__
from dynosim.errors import ConfigError, DynosimError, StudyError
from dynosim.service import api, pages
from dynosim.service.guard import BodyLimit, is_authorized
from dynosim.service.store import Store
from dynosim.service.worker import Runner

OPEN_PATHS = frozenset({"/healthz", "/login"})


def create_app(
    runs_dir: str | Path, storage: str | None = None, *, api_key: str | None = None, traces: Path | None = None
) -> FastAPI:
    """Return the app over *runs_dir*; studies go to *storage*, or to SQLite in each run's directory.

    With *api_key* every request must prove it. Without one the app answers only to loopback names, which keeps pages of
    other origins from reaching it by DNS rebinding. *traces* is the directory whose files HTTP users may replay.
    """
    runs_dir = Path(runs_dir)
    store = Store(runs_dir)
    runner = Runner(store, runs_dir, storage)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        runner.start()
        yield
        runner.stop()

    app = FastAPI(
        title="dynosim",
        version=__version__,
        docs_url=None,  # both pages load their scripts from a CDN
        redoc_url=None,
        lifespan=lifespan,
        dependencies=[Depends(_authorize)],
    )
    app.state.service = api.Service(store, runner, runs_dir, storage, traces)
    app.state.api_key = api_key
    app.add_middleware(BodyLimit)
    if api_key is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.include_router(api.router)
    app.include_router(pages.router)
    app.add_exception_handler(DynosimError, _dynosim_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    return app


def serve(
    runs_dir: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    storage: str | None = None,
    traces: Path | None = None,
) -> None:
    """Run the app until interrupted; ConfigError for an open address without DYNOSIM_API_KEY."""
    import uvicorn

    api_key = os.environ.get("DYNOSIM_API_KEY") or None
    if api_key is None and not _is_loopback(host):
        raise ConfigError(f"--host {host}: allowed without DYNOSIM_API_KEY: 127.0.0.1 and localhost")
    app = create_app(runs_dir, storage, api_key=api_key, traces=traces)
    # An open event stream must not hold up the end of the server.
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)


def _is_loopback(host: str) -> bool:
    return host in ("127.0.0.1", "localhost")


async def _authorize(request: Request) -> None:
    key = request.app.state.api_key
    if key is None or request.url.path in OPEN_PATHS:
        return
    if not is_authorized(key, request.headers.get("authorization", ""), request.cookies.get(pages.COOKIE, "")):
        raise HTTPException(401, "give the API key as a bearer token", {"WWW-Authenticate": "Bearer"})


def _problem(status: int, detail: str, headers: Any = None, **members: Any) -> JSONResponse:
    """Return an RFC 9457 problem."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def _dynosim_error(request: Request, error: DynosimError) -> JSONResponse:
    if isinstance(error, ConfigError):
        return _problem(422, str(error), path=error.path, line=error.line)
    return _problem(404 if isinstance(error, StudyError) else 422, str(error))


async def _validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    problems = [
        {"path": ".".join(map(str, problem["loc"][1:])), "message": problem["msg"]} for problem in error.errors()
    ]
    return _problem(422, f"{problems[0]['path']}: {problems[0]['message']}", path=problems[0]["path"], errors=problems)


async def _http_error(request: Request, error: StarletteHTTPException) -> JSONResponse:
    return _problem(error.status_code, error.detail, error.headers)
