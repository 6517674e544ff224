"""The measured runs that come with the package, replayed: accuracy is held, and the page says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynosim.fidelity import document, validate
from dynosim.fidelity.errors import SCORED, Errors
from dynosim.fidelity.scores import Group, score
from fidelity.rows import outcome

DOCS = Path(__file__).parents[2] / "docs"
PAGE, HELD = (DOCS / "fidelity.md").read_text(), json.loads((DOCS / document.TOTALS).read_text())
SLACK = 0.02
"""How much worse a MAPE may get unnoticed; `dynosim validate --write-docs` renews page and figures."""
SAMPLE = (
    "ifx-l70b-h100-vllm-tp2-1k1k-c4",
    "llmss-rtxpro6000-llama-3.1-8b",
    "mooncake-pd-sglang-qwen3-235b-1p1d-isl512",
)


def _worse(held: dict[str, dict[str, dict[str, float]]], now: dict[str, dict[str, dict[str, float]]]) -> dict[str, str]:
    """Return what lost rows or accuracy, and how."""
    found = {}
    for kind, metrics in held.items():
        for metric, before in metrics.items():
            after = now.get(kind, {}).get(metric, {"rows": 0, "mape": 0.0})
            if after["rows"] < before["rows"] or after["mape"] > before["mape"] + SLACK:
                found[f"{kind} {metric}"] = f"{before} -> {after}"
    return found


def test_no_class_got_worse_and_the_page_is_of_today_s_code() -> None:
    outcomes = validate.validate(validate.MEASURED, workers=1)
    assert _worse(HELD, document.figures(score(outcomes))) == {}
    assert all(f"| {o.measurement.id} |" in PAGE for o in outcomes)
    for line in document.rows_table([o for o in outcomes if o.measurement.id in SAMPLE]).rows:
        assert "| " + " | ".join(line) + " |" in PAGE


def test_totals_on_the_page_are_the_figures_that_are_held() -> None:
    lines = [line.strip("| ").split(" | ") for line in PAGE.splitlines()]
    for kind, metrics in HELD.items():
        group = Group((kind,), 1, {metric: Errors(**errors) for metric, errors in metrics.items()})
        _, _, *cells = document.totals_row(group)
        assert any(line[0] == kind and line[2:] == cells for line in lines), kind
    assert all(metric in {*SCORED, *HELD["all"]} for metrics in HELD.values() for metric in metrics)


@pytest.mark.parametrize(("factor", "lost"), [(1.0, False), (1.0 + 0.9 * SLACK, False), (1.0 + 1.1 * SLACK, True)])
def test_two_points_are_noticed(factor: float, lost: bool) -> None:
    held, now = (
        document.figures(score([outcome("a", {"tpot_ms_mean": 10.0}, {"tpot_ms_mean": 10.0 * f})]))
        for f in (1.0, factor)
    )
    assert bool(_worse(held, now)) == lost
    assert _worse(held, {}), "and so are rows without a prediction"
