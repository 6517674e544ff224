"""The shortest prompt first, with ageing on request.

The prompt's length stands for the length of the job (shortest job first; Dynamo's router queue weighs by it as
``wspt``). Left alone, a stream of short prompts starves the long ones: with ``tokens_per_s`` every second of waiting
takes that number of tokens off, so a request goes by

    arrival + prompt tokens / tokens_per_s
"""

from __future__ import annotations

from dynosim.policies.base import FloatArray, QueueView
from dynosim.policies.options import check_positive


class ShortestPrompt:
    """Serve short prompts first."""

    longest_prefix = False

    def __init__(self, tokens_per_s: float | None = None) -> None:
        if tokens_per_s is not None:
            check_positive(tokens_per_s=tokens_per_s)
        self.add_arrival = tokens_per_s is not None
        self._tokens_per_key = tokens_per_s or 1.0

    def keys(self, requests: QueueView) -> FloatArray:
        """Return the prompt lengths, in seconds of waiting where prompts age."""
        return requests.input_tokens / self._tokens_per_key
