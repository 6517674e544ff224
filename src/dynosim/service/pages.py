"""What a browser sees: the list of studies with a form, and the live page of each.

Everything comes from this server; the content security policy forbids any other origin.
"""

from __future__ import annotations

import hmac
from functools import cache
from importlib.resources import files
from urllib.parse import parse_qs

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from dynosim.report import page
from dynosim.service.api import Known
from dynosim.service.guard import session_token
from dynosim.space import bundled_spaces

COOKIE = "dynosim_session"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'self'"
}
_LOGIN = """<!doctype html><html lang="en"><title>dynosim</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root { color-scheme: light dark; font: 16px system-ui, sans-serif; }</style>
<form method="post"><label>API key <input name="key" type="password" autofocus></label> <button>Enter</button></form>
"""

router = APIRouter(include_in_schema=False)


@router.get("/")
def index() -> HTMLResponse:
    """Return the list of studies and the form for a new one."""
    return HTMLResponse(_index(), headers=_HEADERS)


@cache
def _index() -> str:
    from jinja2 import Template

    source = files("dynosim.service").joinpath("index.html").read_text()
    return str(Template(source, autoescape=True).render(spaces=sorted(bundled_spaces())))


@router.get("/studies/{study_id}")
def live(study: Known) -> HTMLResponse:
    """Return the page that draws the frontier of a study as it grows."""
    return HTMLResponse(page(None, live_url=f"/v1/studies/{study.id}"), headers=_HEADERS)


@router.get("/login")
def login_form() -> HTMLResponse:
    """Ask a browser for the API key."""
    return HTMLResponse(_LOGIN, headers=_HEADERS)


@router.post("/login")
async def login(request: Request) -> RedirectResponse:
    """Exchange the API key for a session cookie."""
    given = parse_qs((await request.body()).decode()).get("key", [""])[0]
    key = request.app.state.api_key
    if key is None or not hmac.compare_digest(given.encode(), key.encode()):
        raise HTTPException(401, "wrong API key")
    response = RedirectResponse("/", 303)
    response.set_cookie(COOKIE, session_token(key), httponly=True, samesite="strict")
    return response


@router.get("/healthz")
def health() -> dict[str, str]:
    """Answer while the server lives."""
    return {"status": "ok"}
