"""The HTTP service: studies as background processes, their events, and the live page. The only package that knows FastAPI."""

from dynosim.service.app import create_app, serve

__all__ = ["create_app", "serve"]
