"""What a browser sees: the list of studies with a form, the live page of each, and Plotly from its own wheel.

Everything comes from this server; the content security policy forbids any other origin.
"""

from __future__ import annotations

import hmac
from functools import cache
from importlib.resources import files
from urllib.parse import parse_qs

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from dynosim.service.api import Known
from dynosim.service.guard import session_token
from dynosim.space import bundled_spaces

COOKIE = "dynosim_session"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; frame-ancestors 'self'"
}

router = APIRouter(include_in_schema=False)


@router.get("/")
def index() -> HTMLResponse:
    """Return the list of studies and the form for a new one."""
    return HTMLResponse(_index(), headers=_HEADERS)


@cache
def _index() -> str:
    from jinja2 import Template

    source = files("dynosim.service").joinpath("index.html").read_text()
    return Template(source, autoescape=True).render(spaces=sorted(bundled_spaces()))


@router.get("/studies/{study_id}")
def live(study: Known) -> HTMLResponse:
    """Return the page that draws the frontier of a study as it grows."""
    from dynosim.report import html

    return HTMLResponse(html.page(None, live_url=f"/v1/studies/{study.id}"), headers=_HEADERS)


@router.get("/plotly.min.js")
def plotly() -> Response:
    """Return Plotly's script from the installed wheel."""
    script = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return Response(script, media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})


@router.get("/login")
def login_form() -> HTMLResponse:
    """Ask a browser for the API key."""
    form = '<form method="post"><label>API key <input name="key" type="password" autofocus></label> <button>Enter</button></form>'
    return HTMLResponse(f"<!doctype html><title>dynosim</title>{form}", headers=_HEADERS)


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
