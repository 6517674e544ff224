"""What is printed, read back from a recording console."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from dynosim.report import terminal
from dynosim.report.analysis import factors, number, percent, tie_letters
from report.fake_study import make_study, make_twin


def _print(renderable: RenderableType, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_frontier_table_has_a_row_per_point_with_its_values() -> None:
    study = make_study(60)
    text = _print(terminal.frontier_table(study))
    for trial in study.frontier():
        row = next(line for line in text.splitlines() if line.strip("│ ").startswith(f"{trial.number} "))
        assert trial.scenario.deployment.label() in row
        assert all(number(value) in row for value in trial.outcome.values or ())


def test_the_frontier_table_shows_noise_ties_and_evidence() -> None:
    study = make_study(60)
    study.trials.append(make_twin(study.frontier()[1], 60))
    text, letters = _print(terminal.frontier_table(study)), tie_letters(study)
    assert letters[60] == letters[study.frontier()[2].number] == "A"
    for trial in study.frontier():
        row = next(line for line in text.splitlines() if line.strip("│ ").startswith(f"{trial.number} "))
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[1] == letters.get(trial.number, "")
        assert cells[-1] == trial.outcome.evidence
        _, ttft, itl = (number(value) for value in trial.outcome.values or ())
        assert ttft in cells, "without an interval there is no ±"
        low, high = trial.interval("inter_token_latency.p99", 100.0) or (0.0, 0.0)
        assert any(cell.split() == [itl, f"±{(high - low) / 2:.0f}", "%"] for cell in cells)
    caption = " ".join(text.split())
    for mark in ("modelled", "extrapolated"):
        band = next(t for t in study.trials if t.outcome.evidence == mark).model_bands()["inter_token_latency"]
        assert f"ITL p99 {factors(band)}" in caption
        assert f"{mark} (tables/dense" in caption


def test_what_all_points_have_in_common_has_no_column() -> None:
    study = make_study(60)
    study.trials = [trial for trial in study.trials if trial.scenario.deployment.gpu == "h100_sxm"]
    text = _print(terminal.frontier_table(study))
    assert "on h100_sxm (simulated)" in text
    assert text.count("h100_sxm") == 1
    assert "served" not in text


def test_a_narrow_frontier_table_keeps_every_label_whole() -> None:
    study = make_study(60)
    text = _print(terminal.frontier_table(study), width=100)
    assert all(f" {trial.scenario.deployment.label()} " in text for trial in study.frontier())
    assert max(map(len, text.splitlines())) <= 100


def test_a_long_frontier_is_thinned_but_keeps_its_ends_and_picks() -> None:
    study = make_study(300)
    front, text = study.frontier(), _print(terminal.frontier_table(study))
    rows = {int(line.strip("│ ").split()[0]) for line in text.splitlines() if line.startswith("│")}
    assert len(front) > terminal.MAX_ROWS >= len(rows) - len(study.picks())
    assert rows >= {front[0].number, front[-1].number} | {trial.number for trial in study.picks().values()}
    assert f"{len(front) - len(rows)} more in frontier.csv" in text


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
    place = [t.number for t in study.frontier()].index(study.picks()["balanced"].number) + 1
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
    assert "no trial meets every SLO" in text
    assert "Pareto" not in text
