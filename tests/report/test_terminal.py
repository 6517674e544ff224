"""What is printed, read back from a recording console."""

import io
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from dynosim.report import terminal
from dynosim.report.analysis import (
    factors,
    folded,
    percent,
    recommendation_numbers,
)
from dynosim.report.numbers import number
from dynosim.search.view import gpu_counts, layout
from dynosim.uncertainty import model_band
from report.fake_study import make_study, make_twin


def _print(renderable: RenderableType, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def narrow_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are told apart, whatever the package's bands say."""
    band = {"low": 0.9, "high": 1.1, "spread": 0.001}
    bands = dict.fromkeys(("time_to_first_token.p99", "inter_token_latency.p99", "inter_token_latency"), band)
    classes = {
        f"tables/nvidia/dense{more}": {"gpus": ["h100_sxm", "h200_sxm"], "bands": bands}
        for more in ("", "/disaggregated")
    }
    file = tmp_path / "bands.json"
    file.write_text(json.dumps({"classes": classes}))
    monkeypatch.setattr(model_band, "BANDS", file)


def _rows(text: str) -> dict[int, list[str]]:
    """Return trial number -> cells of its row."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│"]
    return {int(row[1]): row for row in rows if row[1].isdigit()}


@pytest.mark.parametrize("whole", [False, True])
def test_the_frontier_table_has_values_noise_evidence_and_the_file_of_each_row(*, whole: bool) -> None:
    study = make_study(60)
    study.trials.append(make_twin(study.frontier()[1], 60))
    text, files = _print(terminal.frontier_table(study, whole=whole)), recommendation_numbers(study)
    expected = study.recommended() if whole else [trial for trial, _ in folded(study)]
    rows = _rows(text)
    assert list(rows) == [trial.number for trial in expected]
    for trial in expected:
        cells = rows[trial.number]
        assert cells[0] == str(files[trial.number])
        assert trial.scenario.deployment.label() in cells
        assert trial.scenario.deployment.router.policy in cells
        assert any(cell.split() == [str(trial.scenario.deployment.num_gpus()), *gpu_counts(trial)] for cell in cells)
        assert cells[-1] == trial.outcome.evidence
        _, ttft, itl = (number(value) for value in trial.outcome.values or ())
        assert ttft in cells, "without an interval there is no ±"
        low, high = trial.interval("inter_token_latency.p99", 100.0) or (0.0, 0.0)
        assert any(cell.split() == [itl, f"±{(high - low) / 2:.0f}", "%"] for cell in cells)
    caption = " ".join(text.split())
    for mark in ("modelled", "extrapolated"):
        band = next(t for t in study.trials if t.outcome.evidence == mark).model_bands()["inter_token_latency.p99"]
        assert f"ITL p99 {factors(band)}" in caption
        assert f"{mark} (tables/nvidia/dense" in caption


def test_rows_that_look_alike_are_one_and_every_point_is_counted() -> None:
    study = make_study(300)
    rows = folded(study)
    layouts = [(trial.scenario.deployment.label(), *layout(trial).values()) for trial, _ in rows]
    assert len(set(layouts)) == len(layouts)
    assert sum(more for _, more in rows) + len(rows) == len(study.recommended())
    leaders = {trial.number for trial in study.leaders()}
    assert all(trial.number in leaders for trial, _ in rows)
    shown = Counter((t.scenario.deployment.label(), *layout(t).values()) for t in study.leaders())
    one = max(shown, key=shown.__getitem__)
    study.trials = [t for t in study.trials if (t.scenario.deployment.label(), *layout(t).values()) == one]
    assert [trial for trial, _ in folded(study)] == study.leaders(), "a single layout is not folded"


def test_rows_of_one_layout_say_in_what_they_differ() -> None:
    first, *others = make_study(60).recommended()
    alike = [replace(first, point=first.point | {"deployment.aggregated.max_num_seqs": n}) for n in (64, 128)]
    assert terminal._knobs([first, *others[:1]]) == {}
    assert terminal._knobs(alike) == {"aggregated.max_num_seqs": ["64", "128"]}


def test_what_all_points_have_in_common_has_no_column() -> None:
    study = make_study(60)
    study.trials = [trial for trial in study.trials if trial.scenario.deployment.gpu == "h100_sxm"]
    text = _print(terminal.frontier_table(study))
    assert "fake70b, h100_sxm, vllm, native" in text
    assert text.count("h100_sxm") == text.count("vllm") == 1
    assert "served" not in text


@pytest.mark.parametrize("width", [120, 160])
def test_the_frontier_table_fits_and_keeps_every_label_whole(width: int) -> None:
    study = make_study(60)
    text = _print(terminal.frontier_table(study), width=width)
    assert all(f" {trial.scenario.deployment.label()} " in text for trial, _ in folded(study))
    assert max(map(len, text.splitlines())) <= width


def test_a_long_frontier_is_thinned_but_keeps_its_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "MAX_ROWS", 4)
    study = make_study(300)
    text, every = _print(terminal.frontier_table(study)), folded(study)
    rows = _rows(text)
    assert len(every) > terminal.MAX_ROWS >= len(rows)
    assert set(rows) >= {trial.number for trial in study.picks().values()}
    assert set(rows) <= {trial.number for trial, _ in every}
    left = len(study.recommended()) - len(rows) - sum(more for trial, more in every if trial.number in rows)
    assert f"{left} more in frontier.csv" in text


def test_a_command_works_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    for name in ("python", "dynosim"):
        (bin_folder / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert terminal.command("dynosim") == ".venv/bin/dynosim"
    assert terminal.command("mlflow") == "mlflow"  # not of this installation
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert terminal.command("dynosim") == str(bin_folder / "dynosim")
    monkeypatch.setenv("PATH", str(bin_folder))
    assert terminal.command("dynosim") == "dynosim"


def test_picks_are_compared_with_the_baseline() -> None:
    study = make_study(60)
    lines = _print(terminal.picks_table(study)).splitlines()
    assert study.baseline is not None
    for name, trial in study.picks().items():
        row = next(line for line in lines if line.strip("│ ").startswith(name))
        for new, old in zip(trial.outcome.values or (), study.baseline.outcome.values or (), strict=True):
            assert percent(new, old) in row


def test_next_steps_point_to_the_balanced_recommendation() -> None:
    study = make_study(60)
    place = recommendation_numbers(study)[study.picks()["balanced"].number]
    text = _print(terminal.next_steps(study, Path("runs/x"), "sqlite:///runs/mlflow.db"))
    assert f"dynosim predict runs/x/recommendations/{place:04d}.yaml\n" in text
    assert "runs/x/report.html" in text
    assert "dynosim track ui\n" in text
    assert "dynosim track ui --runs-dir /elsewhere\n" in _print(
        terminal.next_steps(study, Path("/elsewhere/x"), "sqlite:////elsewhere/mlflow.db")
    )
    assert "MLflow" not in _print(terminal.next_steps(study, Path("runs/x"), None))


@pytest.mark.parametrize("objectives", [1, 2, 5])
def test_the_summary_ends_with_where_to_look(objectives: int) -> None:
    text = _print(terminal.summary(make_study(40, objectives), Path("runs/x")))
    assert text.index("Pareto frontier") < text.index("Picks") < text.index("report    runs/x/report.html")


def test_a_study_without_feasible_trials_says_so_and_shows_no_table() -> None:
    text = _print(terminal.summary(replace(make_study(40), trials=[]), Path("runs/x")))
    assert "none of 0 trials is feasible" in text
    assert "Pareto" not in text
