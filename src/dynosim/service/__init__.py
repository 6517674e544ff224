"""The HTTP service: studies in processes of their own, their events, and the live page.

The only package that knows FastAPI.
"""

from dynosim.service.app import create_app, make_server

__all__ = ["create_app", "make_server"]
