"""The write-ahead outbox: messages on disk until MLflow has them.

``study.json`` says which study this is and stays; ``00012.json`` is a trial and ``finish.json`` the end of the study,
and both are removed once delivered. File names sort in the order of delivery.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynosim.files import write_whole

STUDY, FINISH = "study", "finish"


def trial_name(number: int) -> str:
    """Return the message name of trial *number*."""
    return f"{number:05d}"


class Outbox:
    """The messages of one run, by name."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / "outbox"

    def put(self, name: str, message: Mapping[str, Any]) -> None:
        """Store a message; it survives a kill from here on."""
        write_whole(self._path(name), json.dumps(message))

    def read(self, name: str) -> dict[str, Any]:
        """Return a stored message."""
        message: dict[str, Any] = json.loads(self._path(name).read_text())
        return message

    def remove(self, name: str) -> None:
        """Forget a delivered message."""
        self._path(name).unlink()

    def pending(self) -> list[str]:
        """Return the names of what is not delivered, in order of delivery: trials, then the end."""
        return sorted(path.stem for path in self.folder.glob("[!.]*.json") if path.stem != STUDY)

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"
