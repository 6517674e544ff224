"""What is printed, read back from a recording console."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from dynosim.report import terminal
from dynosim.report.analysis import number, percent
from report.fake_study import make_study


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
    assert "mlflow server --backend-store-uri sqlite:///runs/mlflow.db" in text
    assert "MLflow" not in _print(terminal.next_steps(study, Path("runs/x"), None))


@pytest.mark.parametrize("objectives", [1, 2, 5])
def test_the_summary_ends_with_where_to_look(objectives: int) -> None:
    text = _print(terminal.summary(make_study(40, objectives), Path("runs/x")))
    assert text.index("Pareto frontier") < text.index("Picks") < text.index("report    runs/x/report.html")


def test_a_study_without_feasible_trials_says_so_and_shows_no_table() -> None:
    text = _print(terminal.summary(replace(make_study(40), trials=[]), Path("runs/x")))
    assert "no trial meets every SLO" in text
    assert "Pareto" not in text
