"""How many draft tokens a model accepts: what the configuration says, else what was measured of the model.

``acceptance.csv`` holds mean acceptance lengths: tokens that a request gets per verification pass, its own next token
included, so between 1 and 1 + drafts. Most rows are SemiAnalysisAI/InferenceX's ``golden_al_distribution`` (Apache-2.0;
SPEED-Bench coding prompts, vLLM on B300); the source of each stands beside it. Of several conditions of one model the
first in the file counts: the model's own default, thinking.

These sources give no rates per position. Drafts are therefore taken to be accepted at one rate r each, if all before
them were: 1 + r + r^2 + ... + r^k is the measured length of k drafts. Lengths of other k are not extrapolated to.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

import numpy as np

from dynosim.config import SpeculativeConfig
from dynosim.errors import InfeasibleError
from dynosim.hardware.models import ModelCard

TABLE = Path(__file__).with_suffix(".csv")


def acceptance_rates(speculative: SpeculativeConfig, model: ModelCard) -> tuple[float, ...]:
    """Return the probability that draft 1, 2, ... is accepted if all before it were; the last holds for all further.

    Raises InfeasibleError where neither the configuration nor a measurement says.
    """
    if speculative.acceptance_rates is not None:
        return speculative.acceptance_rates
    drafts = speculative.num_speculative_tokens
    length = speculative.acceptance_length or _measured().get((model.name, speculative.method, drafts))
    if length is None:
        known = [f"{k} by {method}" for name, method, k in _measured() if name == model.name]
        raise InfeasibleError(
            f"deployment.engine.speculative: how many of {drafts} drafts by {speculative.method} {model.name} accepts"
            f" was not measured (known: {', '.join(known) or 'none'}): set acceptance_length or acceptance_rates"
        )
    return (_rate(length, drafts),)


def _rate(length: float, drafts: int) -> float:
    """Return the rate r at which 1 + r + ... + r^drafts is *length*: the polynomial's one root in [0, 1]."""
    roots = np.roots([1.0] * drafts + [1.0 - length])
    real = roots[np.abs(roots.imag) < 1e-9].real
    return float(np.clip(real.max(initial=0.0), 0.0, 1.0))


def draft_cost(speculative: SpeculativeConfig, model: ModelCard) -> float:
    """Return the time of one draft as a share of a decode pass: the configuration's, else of the method's layers.

    The heads of MTP and EAGLE are one layer, passed once per draft; DSpark's makes a block of drafts in one pass;
    n-grams are looked up. InfeasibleError for a draft model, whose size nobody states.
    """
    if speculative.draft_cost is not None:
        return speculative.draft_cost
    if speculative.method == "draft_model":
        raise InfeasibleError("deployment.engine.speculative: set draft_cost: it depends on the draft model")
    passes = {"ngram": 0.0, "dspark": 1.0 / speculative.num_speculative_tokens}
    return passes.get(speculative.method, 1.0) / model.layers


@lru_cache
def _measured() -> dict[tuple[str, str, int], float]:
    """Return (model, method, drafts) -> acceptance length."""
    found: dict[tuple[str, str, int], float] = {}
    with TABLE.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            key = row["model"], row["method"], int(row["num_speculative_tokens"])
            found.setdefault(key, float(row["acceptance_length"]))
    return found
