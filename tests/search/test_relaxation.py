"""An SLO that nothing can meet: the study ends with what would be enough, and it really is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dynosim
from dynosim.cli import NOTHING_FEASIBLE, OK, main
from dynosim.search.loop import LAST_CHANCES
from dynosim.search.trial import Status

TRIALS = 40
HARD = {"time_to_first_token.p99": "20", "inter_token_latency.p99": "1"}


def _optimize(slo: dict[str, str]) -> int:
    """Search without a baseline, whose run always goes to its end; random points are the same whatever was told."""
    overrides = ["workload.source.requests=60", "baseline={}", "optimizer.sampler=random", "optimizer.workers=1"]
    overrides += [f"slo.{name}={bound}" for name, bound in slo.items()]
    return main(
        ["optimize", "tiny", "--trials", str(TRIALS), *(word for said in overrides for word in ("--set", said))]
    )


def test_a_study_that_ends_with_nothing_names_bounds_that_a_rerun_meets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNOSIM_TRACKING", "off")
    assert _optimize(HARD) == NOTHING_FEASIBLE
    said = " ".join(capsys.readouterr().out.split())
    study = dynosim.load_study("last")
    whole = [trial.number for trial in study.trials if trial.outcome.status is Status.COMPLETE]
    assert whole == list(range(TRIALS - round(LAST_CHANCES * TRIALS), TRIALS))
    assert {trial.outcome.status for trial in study.trials[: whole[0]]} == {Status.LOST}

    named = re.search(r"with TTFT p99 <= (\S+) ms .* and ITL p99 <= (\S+) ms .* trial (\d+) \(.*?\) is feasible", said)
    assert named is not None
    assert named[0].replace("<", r"\u003c") in Path(f"runs/{study.id}/report.html").read_text()
    nearest = min(whole, key=lambda number: max(study.trials[number].outcome.constraints.values()))
    assert int(named[3]) == nearest

    enough = dict(zip(HARD, (named[1].replace(",", ""), named[2].replace(",", "")), strict=True))
    assert _optimize(enough) == OK
    again = dynosim.load_study("last").trials[nearest]
    assert again.point == study.trials[nearest].point
    assert again.outcome.feasible
