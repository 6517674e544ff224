"""The base of every configuration model: frozen, keyword-only, unknown keys refused."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

CUSTOM = "file.py:Name"
"""Stands for the user's own in a list of allowed names."""
Custom = Annotated[str, Field(pattern=":", description=CUSTOM)]


class Config(BaseModel):
    """A frozen value that validates when made; ``content_hash`` names it by what it says."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def content_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON of this value."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
