"""The HTTP server: routes of ``api``, pages of ``pages``, errors as problem+json, one API key, limits.

One server owns one directory of runs. It is meant for one team on one machine: there are no users and no roles.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dynosim import __version__
from dynosim.addresses import check_address
from dynosim.errors import ConfigError, DynosimError, StudyError
from dynosim.search.store import open_storage
from dynosim.service import api, pages
from dynosim.service.guard import Allowed, BodyLimit, is_authorized
from dynosim.service.store import Store
from dynosim.service.worker import Runner

LOOPBACK = ("127.0.0.1", "localhost")
OPEN_PATHS = frozenset({"/healthz", "/login"})


def create_app(
    runs_dir: str | Path,
    storage: str | None = None,
    *,
    api_key: str | None = None,
    traces: Path | None = None,
    allow: Sequence[str] = (),
) -> FastAPI:
    """Return the app over *runs_dir*; studies go to *storage*, or to SQLite in each run's directory.

    With *api_key* every request must prove it. Without one the app answers only to loopback names, which keeps pages of
    other origins from reaching it by DNS rebinding. *traces* is the directory whose files HTTP users may replay,
    *allow* the code and card files of the working directory that they may name (``dynosim.plugins``).
    """
    runs_dir = Path(runs_dir)
    store, allowed = Store(runs_dir), Allowed.of(traces, allow)
    runner = Runner(store, runs_dir, storage, allowed)

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
    app.state.service = api.Service(store, runner, runs_dir, storage, allowed)
    app.state.api_key = api_key
    app.add_middleware(BodyLimit)
    if api_key is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)
    app.include_router(api.router)
    app.include_router(pages.router)
    for error in (DynosimError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, _answer_error)
    return app


def make_server(
    runs_dir: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    storage: str | None = None,
    traces: Path | None = None,
    allow: Sequence[str] = (),
) -> uvicorn.Server:
    """Return a server to ``run()``.

    Raises ConfigError for an address that others reach without a DYNOSIM_API_KEY or that is taken, and for a storage
    that cannot be opened.
    """
    api_key = os.environ.get("DYNOSIM_API_KEY") or None
    if api_key is None and host not in LOOPBACK:
        raise ConfigError(f"--host {host}: allowed without DYNOSIM_API_KEY in the environment: {', '.join(LOOPBACK)}")
    check_address(host, port)
    if storage is not None:
        open_storage(storage)
    app = create_app(runs_dir, storage, api_key=api_key, traces=traces, allow=allow)
    # An open event stream must not hold up the end of the server.
    return uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2))


async def _authorize(request: Request) -> None:
    key = request.app.state.api_key
    if key is None or request.url.path in OPEN_PATHS:
        return
    if not is_authorized(key, request.headers.get("authorization", ""), request.cookies.get(pages.COOKIE, "")):
        raise HTTPException(401, "give the API key as a bearer token, or at /login", {"WWW-Authenticate": "Bearer"})


def _problem(status: int, detail: str, headers: Any = None, **members: Any) -> JSONResponse:
    """Return an RFC 9457 problem."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    match error:
        case ConfigError():
            return _problem(422, str(error), path=error.path, line=error.line)
        case StudyError():
            return _problem(404, str(error))
        case RequestValidationError():
            problems = [{"path": ".".join(map(str, e["loc"][1:])), "message": e["msg"]} for e in error.errors()]
            first = problems[0]
            return _problem(422, f"{first['path']}: {first['message']}", path=first["path"], errors=problems)
        case HTTPException():
            return _problem(error.status_code, error.detail, error.headers)
    return _problem(422, str(error))  # valid input that cannot run: an InfeasibleError or a TimingError
