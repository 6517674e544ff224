"""What may come in over HTTP: data; of code, cards and traces only what the server was started with."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dynosim import plugins
from dynosim.config.load import dump, leaves, parse_document, references
from dynosim.errors import ConfigError
from dynosim.space import SearchSpace, bundled_spaces

SPACE_FILE = "space.yaml"
MAX_BODY_BYTES = 1_000_000
MAX_TRIALS = 2_000
MAX_REQUESTS = 1_000_000
MAX_CASES = 50
"""Workloads times scenarios, the unvaried case included."""


@dataclass(frozen=True)
class Allowed:
    """What the server was started with."""

    traces: Path | None = None
    """Directory whose files may be replayed."""
    code: frozenset[str] = frozenset()
    """Users' code and card files, by absolute reference."""

    @classmethod
    def of(cls, traces: Path | None, names: Sequence[str]) -> Allowed:
        """Return what *names*, relative to the working directory, allow; ConfigError where code cannot be loaded."""
        for name in names:
            if not plugins.is_card_file(name):
                plugins.load(name, path="--allow")
        return cls(traces, frozenset(plugins.absolute(name, Path()) for name in names))


def space_text(given: str | Mapping[str, Any]) -> str:
    """Return the YAML of a space given by bundled name, as YAML text or as a JSON object; never reads another file."""
    if isinstance(given, Mapping):
        return json.dumps(given)
    if "\n" in given:
        return given
    bundled = bundled_spaces()
    if given not in bundled:
        raise ConfigError(f"{given}: no such space; allowed: {', '.join(bundled)}, or the text of a YAML file")
    return bundled[given].read_text()


def anchored_text(given: str | Mapping[str, Any]) -> str:
    """Return the YAML of a space with what it names of the server's working directory as absolute paths."""
    return dump(parse_document(space_text(given), SPACE_FILE).data)


def read_space(given: str | Mapping[str, Any], overrides: Sequence[str], allowed: Allowed) -> SearchSpace:
    """Return the space; raises ConfigError where it is wrong or asks for what HTTP users may not have."""
    text = space_text(given)
    check_data(parse_document(text, SPACE_FILE, overrides).data, allowed)
    space = SearchSpace.parse(text, overrides, file=SPACE_FILE)
    if space.reference.optimizer.trials > MAX_TRIALS:
        raise ConfigError(f"allowed over HTTP: at most {MAX_TRIALS}", path="optimizer.trials")
    return space


def check_data(data: Any, allowed: Allowed) -> None:
    """Raise ConfigError where *data*, a space or scenario as plain values, names code, a file or too many requests."""
    workloads, varied = (len(data.get(key) or ()) for key in ("workloads", "scenarios"))
    if max(workloads, 1) * (1 + varied) > MAX_CASES:
        raise _refused(("scenarios",), varied, f"allowed over HTTP: at most {MAX_CASES} cases")
    for path, reference in references(data):
        if reference not in allowed.code:
            names = ", ".join(sorted(map(plugins.short, allowed.code))) or "nothing"
            raise _refused(path, plugins.short(reference), f"allowed over HTTP: built-ins; of 'serve --allow': {names}")
    for path, value in leaves(data):
        if path[-1] == "path" and not _is_inside(str(value), allowed.traces):
            raise _refused(path, value, "traces over HTTP are files of the directory given to 'serve --traces'")
        if path[-1] == "calibration" and str(value).endswith((".yaml", ".yml")):
            raise _refused(path, value, "calibrations over HTTP are profiles of this server, by name")
        if "warm_start" in path and Path(str(value)).name != value:
            raise _refused(path, value, "runs over HTTP are runs of this server, by id")
        if "requests" in path and isinstance(value, int | float) and value > MAX_REQUESTS:
            raise _refused(path, value, f"allowed over HTTP: at most {MAX_REQUESTS}")
        if "workers" in path and isinstance(value, int) and value > (os.cpu_count() or 1):
            raise _refused(path, value, "allowed over HTTP: at most the cores of this machine")


def _refused(path: tuple[str, ...], value: Any, rule: str) -> ConfigError:
    return ConfigError(f"{value}: {rule}", path=".".join(path))


def _is_inside(file: str, folder: Path | None) -> bool:
    return folder is not None and Path(file).resolve().is_relative_to(folder.resolve())


def session_token(api_key: str) -> str:
    """Return the cookie that stands for *api_key*, since EventSource cannot send a header."""
    return hmac.new(api_key.encode(), b"dynosim session", hashlib.sha256).hexdigest()


def is_authorized(api_key: str, authorization: str, cookie: str) -> bool:
    """Whether the bearer token or the session cookie proves *api_key*; compared in constant time."""
    bearer = authorization.removeprefix("Bearer ")
    known = hmac.compare_digest(bearer.encode(), api_key.encode())
    return known | hmac.compare_digest(cookie.encode(), session_token(api_key).encode())


class BodyLimit:
    """ASGI middleware that answers 413 to bodies above MAX_BODY_BYTES, whatever their Content-Length says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body is above {MAX_BODY_BYTES} bytes")
            return message

        await self._app(scope, limited, send)
