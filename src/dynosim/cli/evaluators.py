"""``dynosim ask`` and ``tell``: trials that others evaluate."""

from __future__ import annotations

import argparse
import json
import operator
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.cli.arguments import (
    add_verb,
    input_folder,
    named_number,
    natural,
    output_folder,
    overrides_option,
    positive,
    runs_dir_option,
    study_options,
    trace_option,
    tracking_option,
)
from dynosim.cli.output import OK
from dynosim.errors import ConfigError

if TYPE_CHECKING:
    from dynosim.search.loop import OpenStudy
    from dynosim.search.trial import Proposal

ASK_TIMEOUT_S = 600.0
"""How long `dynosim ask` and `dynosim tell` wait for others that do so."""


def add_ask(verbs: Any) -> None:
    summary = "propose trials for others to evaluate: a JSON object a line"
    parents = [overrides_option(), trace_option(), study_options(), runs_dir_option(output_folder)]
    parser = add_verb(verbs, "ask", _ask, summary, parents)
    parser.add_argument("study", metavar="SPACE|RUN", help="what starts or goes on with a run, or the run itself")
    parser.add_argument("--count", type=positive, default=1, metavar="N", help="proposals (default: 1)")
    parser.add_argument("--pending", action="store_true", help="those that were asked for and not told, nothing new")

    summary = "say how a trial that was asked for ended"
    parser = add_verb(verbs, "tell", _tell, summary, [tracking_option(), runs_dir_option(input_folder)])
    parser.add_argument("run", metavar="RUN", help="run id, its directory, or 'last'")
    parser.add_argument(
        "number", type=natural, nargs="?", metavar="NUMBER", help="of the trial; without it: JSON lines on stdin"
    )
    parser.add_argument("--values", type=float, nargs="+", metavar="X", help="of the objectives, in their order")
    parser.add_argument("--noise", type=float, nargs="+", metavar="SD", help="standard deviation of each value")
    parser.add_argument(
        "--constraint",
        type=named_number,
        action="append",
        metavar="SLO=X",
        help="violation relative to the bound, met at or below 0; repeatable (default: computed)",
    )
    parser.add_argument(
        "--metrics",
        metavar="FILE.json",
        help="measured metrics, or the result file of AIPerf, vLLM bench ...",
    )
    parser.add_argument("--failed", metavar="REASON", help="it has no result")
    parser.add_argument("--infeasible", metavar="REASON", help="it cannot run")
    parser.add_argument("--wall-s", type=float, metavar="S", help="seconds that it took")
    parser.add_argument("--storage", metavar="URL", help="where the trials are, if it needs a password")


def _ask(args: argparse.Namespace) -> int:
    names = ("overrides", "trace", "objectives", "trials", "seed", "sampler", "storage")
    study = _study_to_ask(args, **{name: getattr(args, name) for name in names}, tracking="off")
    try:
        _print_proposals(study, study.pending if args.pending else (study.ask(new=True) for _ in range(args.count)))
    finally:
        study.close(estimate=study.ended)
    return OK


def _print_proposals(study: OpenStudy, proposals: Iterable[Proposal | None]) -> None:
    for proposal in proposals:
        if proposal is None:
            left = "" if study.ended else ", the others pending"
            print(f"{len(study.trials)} of {study.budget} trials are told{left}", file=sys.stderr)
            return
        scenario = proposal.scenario.model_dump(mode="json")
        shown = {"run": study.id, "number": proposal.number, "label": proposal.scenario.deployment.label()}
        print(json.dumps({**shown, "point": proposal.point, "scenario": scenario}), flush=True)


def _study_to_ask(args: argparse.Namespace, **options: Any) -> OpenStudy:
    from dynosim.run.directory import look_up
    from dynosim.run.study import open_study

    run_dir = look_up(args.study, args.runs_dir)
    if run_dir is None:
        return open_study(args.study, runs_dir=args.runs_dir, **options)
    return _open_run(run_dir, **options)


def _open_run(run_dir: Path, *, storage: str | None, **options: Any) -> OpenStudy:
    """Open the run in *run_dir* as it was asked for; many jobs that tell at a time wait for each other."""
    from dynosim.run.directory import CONFIG_FILE, RunState
    from dynosim.run.study import open_study

    state = RunState.read(run_dir)
    return open_study(
        run_dir / CONFIG_FILE,
        storage=storage or state.storage or None,
        runs_dir=run_dir.parent,
        run_id=state.id,
        wait_s=ASK_TIMEOUT_S,
        **options,
    )


def _tell(args: argparse.Namespace) -> int:
    from dynosim.run.directory import find_run
    from dynosim.search.answer import Answer

    answers = list(_answers(args))
    study = _open_run(find_run(args.run, args.runs_dir), storage=args.storage, tracking=args.tracking)
    try:
        for number, said in answers:
            trial = study.tell(number, **vars(Answer.of(said)))
            verdict = "feasible" if trial.outcome.feasible else "not feasible"
            print(f"trial {number}: {trial.outcome.status}, {verdict}; {len(study.trials)} of {study.budget} told")
    finally:
        study.close(estimate=False)
    return OK


def _answers(args: argparse.Namespace) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the answer of each trial that `dynosim tell` was given."""
    if args.number is not None:
        names = ("values", "noise", "metrics", "failed", "infeasible", "wall_s")
        said = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
        said |= {"constraints": dict(args.constraint)} if args.constraint else {}
        yield args.number, _with_metrics(said)
        return
    for place, line in enumerate(sys.stdin, start=1):
        try:
            said = json.loads(line)
            number = said.pop("number")
            yield operator.index(number), _with_metrics(said)
        except (ValueError, KeyError, AttributeError, TypeError):
            allowed = 'allowed: a JSON object with the "number" of a trial and the answer'
            raise ConfigError(f"{line.strip()}: {allowed}", file="standard input", line=place) from None


def _with_metrics(said: dict[str, Any]) -> dict[str, Any]:
    """Return an answer with the content of its file of metrics."""
    if not isinstance(said.get("metrics"), str):
        return said
    from dynosim.calibration.readers import read_metrics

    return {**said, "metrics": read_metrics(said["metrics"])}
