"""Every error that dynosim raises on purpose.

DynosimError
├── ConfigError        the user's input is wrong: file, line, path, value and what is allowed (exit code 2)
├── InfeasibleError    a valid configuration that cannot run: the reason is a result, not a crash
├── TimingError        a timing source has no data for what was asked
│   └── NoPackError    and a configuration asked for it: a ConfigError too
└── StudyError         a study cannot start, resume or be found
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class DynosimError(Exception):
    """Base of all errors raised on purpose; catch it to catch them all."""


class ConfigError(DynosimError):
    """Wrong input, reported as one line: ``file:line: path: value: what is allowed``."""

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None, path: str = "") -> None:
        self.message, self.file, self.line, self.path = message, file, line, path
        where = ":".join(str(part) for part in (file, line) if part is not None)
        super().__init__(": ".join(part for part in (where, path, message) if part))


class InfeasibleError(DynosimError):
    """A valid configuration that cannot be deployed, for example weights larger than GPU memory."""


class TimingError(DynosimError):
    """A timing source has no data for the model, GPU, engine, parallelism and precision asked for."""


class NoPackError(TimingError, ConfigError):
    """No timing pack has what a configuration asks for; ``path`` is the field that asks."""


class StudyError(DynosimError):
    """A study cannot start, resume or be found."""


def nearest(word: str, words: Iterable[str], *, most: int = 1, cutoff: float = 0.5) -> str:
    """Return ``did you mean 'x' or 'y'? `` with the *most* closest of *words*, nothing when none is *cutoff* alike."""
    close = [repr(name) for name in get_close_matches(word, list(words), n=most, cutoff=cutoff)]
    return f"did you mean {' or '.join(filter(None, (', '.join(close[:-1]), close[-1])))}? " if close else ""
