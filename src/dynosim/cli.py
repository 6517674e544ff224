"""The command line: parses, calls the functions of ``dynosim.run``, prints, and maps errors to exit codes.

The result goes to stdout; progress and errors go to stderr. Exit codes: 0 done, 1 execution failure, 2 usage or
configuration, 3 done but nothing feasible, 130 interrupted and resumable. Heavy packages are imported inside the
verbs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from dynosim import __version__
from dynosim.errors import ConfigError, DynosimError, InfeasibleError, StudyError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from dynosim.fidelity.document import Section
    from dynosim.fidelity.replay import Outcome
    from dynosim.search.loop import OpenStudy
    from dynosim.search.study import Study
    from dynosim.search.trial import Trial
    from dynosim.space import SearchSpace

OK, FAILURE, USAGE, NOTHING_FEASIBLE, INTERRUPTED = 0, 1, 2, 3, 130

ASK_TIMEOUT_S = 600.0
"""How long `dynosim ask` and `dynosim tell` wait for others that do so."""
PLAIN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    try:
        args = _parser().parse_args(argv)
        return int(args.verb(args))
    except ConfigError as error:
        return _complain(error, USAGE)
    except InfeasibleError as error:
        return _complain(error, NOTHING_FEASIBLE)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (DynosimError, OSError) as error:
        return _complain(error, FAILURE)
    except KeyboardInterrupt:
        return INTERRUPTED


def _complain(error: Exception, code: int) -> int:
    print(f"dynosim: {error}", file=sys.stderr)
    return code


# ---- arguments ----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Refuses wrong usage in one line, without the usage of the whole verb."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError, with the nearest of the choices that there are."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            word, choices = choice[1], re.findall(r"[\w.-]+", choice[2])
            message = f"{message[: choice.start()]}{word!r}: {nearest(word, choices)}allowed: {', '.join(choices)}"
        raise ConfigError(f"{message.removeprefix('argument ')} (usage: {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dynosim", description="Map the Pareto frontier of LLM serving: Bayesian search over simulation."
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"dynosim {__version__} (independent project, not affiliated with NVIDIA)",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_optimize(verbs)
    _add_ask(verbs)
    _add_predict(verbs)
    _add_compare(verbs)
    _add_show(verbs)
    _add_launch(verbs)
    _add_config(verbs)
    _add_spaces(verbs)
    _add_trace(verbs)
    _add_timing(verbs)
    _add_validate(verbs)
    _add_calibrate(verbs)
    _add_track(verbs)
    _add_serve(verbs)
    _verb(verbs, "doctor", _doctor, "check this installation", [_runs_dir(str)])
    return parser


def _verb(
    verbs: Any, name: str, function: Any, summary: str, parents: Sequence[argparse.ArgumentParser] = ()
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary, parents=parents)
    parser.set_defaults(verb=function)
    return parser


def _group(verbs: Any, name: str, summary: str) -> Any:
    group = verbs.add_parser(name, help=summary, description=summary)
    return group.add_subparsers(metavar="VERB", required=True)


def _options() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(add_help=False)


def _overrides() -> argparse.ArgumentParser:
    options = _options()
    options.add_argument(
        "--set",
        dest="overrides",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="set a field to a YAML value or domain; repeatable, left to right",
    )
    return options


def _trace_option() -> argparse.ArgumentParser:
    options = _options()
    options.add_argument("--trace", metavar="FILE", help="replay this trace instead of the workload's source")
    return options


def _format(*extra: str) -> argparse.ArgumentParser:
    options = _options()
    options.add_argument("--format", choices=("table", "json", *extra), default="table", help="what stdout gets")
    return options


def _runs_dir(kind: Callable[[str], str]) -> argparse.ArgumentParser:
    options = _options()
    options.add_argument(
        "--runs-dir", type=kind, default="runs", metavar="DIR", help="where runs are kept (default: runs)"
    )
    return options


def _study_options() -> argparse.ArgumentParser:
    options = _options()
    options.add_argument("--trials", type=_positive, metavar="N", help="trials in all, those of a resumed run included")
    options.add_argument(
        "--seed", type=_natural, metavar="N", help="seed of the search; the traffic has its own: --set seed=N"
    )
    options.add_argument("--storage", metavar="URL", help="Optuna storage; default: SQLite in the run's directory")
    options.add_argument("--sampler", metavar="NAME", help="how points are proposed (default: the space's)")
    options.add_argument(
        "--objective",
        dest="objectives",
        metavar="OBJECTIVE",
        action="append",
        default=[],
        help="METRIC[.STAT] or path.py:function; repeatable; replaces the space's objectives",
    )
    return options


def _tracking() -> argparse.ArgumentParser:
    options = _options()
    options.add_argument(
        "--tracking", default="auto", metavar="auto|off|URI", help="where MLflow keeps the run (default: auto)"
    )
    return options


def _add_optimize(verbs: Any) -> None:
    parents = [_overrides(), _trace_option(), _study_options(), _tracking(), _format(), _runs_dir(_output_folder)]
    parser = _verb(verbs, "optimize", _optimize, "search a space for its Pareto frontier", parents)
    parser.add_argument("space", metavar="SPACE", help="bundled name (dynosim spaces) or YAML file")
    parser.add_argument("--workers", type=_positive, metavar="N", help="worker processes (default: all cores)")
    parser.add_argument(
        "--in-flight", type=_positive, metavar="N", help="proposals at a time, a part of the study (default: 4)"
    )
    parser.add_argument(
        "--evaluate", metavar="FILE.py:FUNCTION", help="evaluate with this function instead of the simulator"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved space and its size, run nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_ask(verbs: Any) -> None:
    summary = "propose trials for others to evaluate: a JSON object a line"
    parents = [_overrides(), _trace_option(), _study_options(), _runs_dir(_output_folder)]
    parser = _verb(verbs, "ask", _ask, summary, parents)
    parser.add_argument("study", metavar="SPACE|RUN", help="what starts or goes on with a run, or the run itself")
    parser.add_argument("--count", type=_positive, default=1, metavar="N", help="proposals (default: 1)")
    parser.add_argument("--pending", action="store_true", help="those that were asked for and not told, nothing new")

    summary = "say how a trial that was asked for ended"
    parser = _verb(verbs, "tell", _tell, summary, [_tracking(), _runs_dir(_input_folder)])
    parser.add_argument("run", metavar="RUN", help="run id, its directory, or 'last'")
    parser.add_argument(
        "number", type=_natural, nargs="?", metavar="NUMBER", help="of the trial; without it: JSON lines on stdin"
    )
    parser.add_argument("--values", type=float, nargs="+", metavar="X", help="of the objectives, in their order")
    parser.add_argument("--noise", type=float, nargs="+", metavar="SD", help="standard deviation of each value")
    parser.add_argument(
        "--constraint",
        type=_named_number,
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


def _add_predict(verbs: Any) -> None:
    parents = [_overrides(), _trace_option(), _format()]
    parser = _verb(verbs, "predict", _predict, "simulate one configuration", parents)
    parser.add_argument("config", metavar="CONFIG", help="YAML file of one configuration; of a space: its baseline")
    parser.add_argument(
        "--capture-requests", type=_output_file, metavar="FILE.parquet", help="also write one row per request"
    )
    parser.add_argument(
        "--seeds", type=_positive, default=1, metavar="N", help="mean and interval over N runs with other traffic"
    )


def _add_compare(verbs: Any) -> None:
    summary = (
        "tune for each workload of a space and for all: fronts, what each loses on the others, the best compromise"
    )
    parser = _verb(verbs, "compare-workloads", _compare, summary, [_overrides(), _format(), _runs_dir(_output_folder)])
    parser.add_argument("spaces", nargs="+", metavar="SPACE", help="one with several workloads; or several, or runs")
    parser.add_argument("--trials", type=_positive, metavar="N", help="trials of each search")
    parser.add_argument("--seed", type=_natural, metavar="N", help="seed of each search")
    parser.add_argument("--workers", type=_positive, metavar="N", help="simulations at a time (default: all cores)")
    parser.add_argument("--tracking", default="auto", metavar="auto|off|URI", help="where MLflow keeps the runs")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _add_show(verbs: Any) -> None:
    parser = _verb(verbs, "show", _show, "show a run again", [_format("csv"), _runs_dir(_input_folder)])
    parser.add_argument("run", metavar="RUN", help="run id, its directory, or 'last'")
    parser.add_argument("--storage", metavar="URL", help="where the trials are, if it needs a password")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--frontier", action="store_true", help="only the frontier, without picks and next steps")
    what.add_argument("--trial", type=int, metavar="N", help="one trial with all its metrics")


def _add_launch(verbs: Any) -> None:
    summary = "print the commands that start real servers like a configuration"
    parser = _verb(verbs, "launch", _launch, summary, [_overrides()])
    parser.add_argument("config", metavar="CONFIG", help="YAML file of one configuration; of a space: its baseline")


def _add_config(verbs: Any) -> None:
    group = _group(verbs, "config", "check, expand and start configuration files")
    for name, function, summary in (
        ("validate", _config_validate, "check a space or configuration file"),
        ("expand", _config_expand, "print the file with every default filled in"),
    ):
        parser = _verb(group, name, function, summary, [_overrides()])
        parser.add_argument("config", metavar="CONFIG", help="bundled name or YAML file")
    _verb(group, "schema", _config_schema, "print the JSON Schema of all YAML files")
    _verb(group, "coverage", _config_coverage, "print what the simulator makes of every field, as Markdown")
    parser = _verb(group, "init", _config_init, "print a bundled space as the start of your own")
    parser.add_argument("space", metavar="SPACE", nargs="?", default="tiny", help="bundled name (default: tiny)")


def _add_spaces(verbs: Any) -> None:
    _verb(verbs, "spaces", _spaces, "list the bundled search spaces", [_format()])


def _add_trace(verbs: Any) -> None:
    group = _group(verbs, "trace", "look at traces")
    parser = _verb(group, "stats", _trace_stats, "rate, burstiness, lengths and reuse of a trace", [_format()])
    parser.add_argument("path", metavar="PATH", help="Mooncake JSONL or Azure CSV, .gz and .zst too")


def _add_timing(verbs: Any) -> None:
    group = _group(verbs, "timing", "measured kernel times")
    _verb(group, "list", _timing_list, "list the timing packs at hand", [_format()])
    parser = _verb(group, "build", _timing_build, "make timing packs from aiconfigurator-core (extra [aic])")
    parser.add_argument("--model", required=True, help="for example llama-3.1-70b")
    parser.add_argument("--gpu", required=True, help="for example h100_sxm")
    parser.add_argument("--engine", default="vllm", help="an engine's name, as in deployment.engine.name")
    parser.add_argument("--engine-version", default="current", metavar="VERSION")
    parser.add_argument("--quantization", default="none", choices=("none", "fp8", "nvfp4"))
    parser.add_argument("--kv-cache-dtype", default="auto", choices=("auto", "bf16", "fp8"))
    parser.add_argument("--enable-expert-parallel", action="store_true")
    parser.add_argument("--mxfp8-activations", action="store_true", help="of MXFP4 experts under vLLM on Blackwell")
    parser.add_argument(
        "--tensor-parallel-size", type=_positive, action="append", metavar="N", help="repeatable (default: 1 2 4 8)"
    )
    parser.add_argument(
        "--data-parallel-size", type=_positive, action="append", metavar="N", help="repeatable (default: 1)"
    )


def _add_validate(verbs: Any) -> None:
    parser = _verb(verbs, "validate", _validate, "compare predictions with measurements of real GPUs", [_format()])
    parser.add_argument(
        "--set",
        action="append",
        metavar="SET",
        help="CSV of measurements, or a folder of some; repeatable (default: those that come with dynosim)",
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="rows whose id matches")
    parser.add_argument("--details", action="store_true", help="also sweeps, rankings, effects, logs and every row")
    parser.add_argument("--workers", type=_positive, metavar="N", help="rows at a time (default: all cores)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--save", metavar="FILE", help="write all predictions to FILE")
    parser.add_argument("--outcomes", metavar="FILE", help="predictions that --save wrote, in place of a replay")
    parser.add_argument(
        "--write-docs",
        type=_output_folder,
        metavar="DIR",
        nargs="?",
        const="docs",
        help="write fidelity.md and its plots (default: docs)",
    )
    parser.add_argument("--write-bands", action="store_true", help="renew this package's error bands (maintainers)")


def _add_calibrate(verbs: Any) -> None:
    summary = "fit a profile of multipliers to results of AIPerf, vLLM bench, GuideLLM or SGLang"
    parser = _verb(verbs, "calibrate", _calibrate, summary, [_overrides(), _format()])
    parser.add_argument("config", metavar="CONFIG", help="the configuration as it ran; without results: a manifest")
    parser.add_argument("measured", metavar="MEASURED", nargs="*", help="result files")
    parser.add_argument("--name", help="name of the profile (default: that of the file CONFIG)")
    parser.add_argument("--server-log", metavar="FILE", help="the server's log: version and KV capacity are compared")
    parser.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="FILE",
        help="its /metrics after the runs, or twice: before and after; cache hits and preemptions are compared",
    )
    parser.add_argument(
        "--out",
        type=_output_folder,
        default="calibrations",
        metavar="DIR",
        help="where to write it (default: calibrations)",
    )


def _add_track(verbs: Any) -> None:
    group = _group(verbs, "track", "experiment tracking")
    parser = _verb(group, "sync", _track_sync, "send to MLflow what it missed", [_runs_dir(_input_folder)])
    parser.add_argument("run", metavar="RUN", help="run id, its directory, or 'last'")
    parser = _verb(group, "ui", _track_ui, "MLflow's pages, and a link to the last study", [_runs_dir(_input_folder)])
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=5000, metavar="N", help="default: 5000")


def _add_serve(verbs: Any) -> None:
    parser = _verb(verbs, "serve", _serve, "HTTP API and live frontier page", [_runs_dir(_output_folder)])
    parser.add_argument("--host", default="127.0.0.1", help="any other than loopback needs DYNOSIM_API_KEY")
    parser.add_argument("--port", type=_port, default=8080, metavar="N", help="default: 8080")
    parser.add_argument("--storage", metavar="URL", help="Optuna storage of all studies; default: SQLite per run")
    parser.add_argument("--traces", type=_folder, metavar="DIR", help="directory whose traces HTTP users may name")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="FILE.py:NAME",
        help="code or card they may name; repeatable",
    )


def _whole(text: str, low: int, high: float = math.inf) -> int:
    """Return the whole number that *text* says, from *low* to *high*."""
    allowed = f"a whole number from {low} to {high}" if high < math.inf else f"a whole number >= {low}"
    if not re.fullmatch(r"[-+]?\d+", text) or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text}: allowed: {allowed}")
    return int(text)


def _positive(text: str) -> int:
    return _whole(text, 1)


def _natural(text: str) -> int:
    return _whole(text, 0)


def _named_number(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: allowed: SLO=NUMBER") from None


def _port(text: str) -> int:
    return _whole(text, 0, 65535)


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: not a directory")
    return text


def _input_folder(text: str) -> str:
    """Return *text* unless something else than a directory has that name: before the first run there is none."""
    return _folder(text) if Path(text).exists() else text


def _output_folder(text: str) -> str:
    """Return *text* if it is, or can become, a directory to write into."""
    parent = next(path for path in (Path(text), *Path(text).absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text}: {parent} is not a directory that can be written")
    return text


def _output_file(text: str) -> str:
    """Return *text* if a file of that name can be written into a directory that exists."""
    if Path(text).is_dir() or not Path(text).parent.is_dir() or not os.access(Path(text).parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text}: allowed: a file in an existing directory that can be written")
    return text


# ---- verbs --------------------------------------------------------------------------------------------------------


def _optimize(args: argparse.Namespace) -> int:
    from dynosim import run
    from dynosim.progress import GracefulStop, ProgressLine
    from dynosim.report import terminal

    overrides = [*args.overrides, *([f"optimizer.sampler={args.sampler}"] if args.sampler else [])]
    asked = {"overrides": overrides, "trace": args.trace, "objectives": args.objectives}
    if args.dry_run:
        return _dry_run(run.load_space(args.space, **asked))
    with GracefulStop() as stop, ProgressLine(_console(sys.stderr), quiet=args.quiet) as line:
        try:
            study = run.optimize(
                args.space,
                **asked,
                trials=args.trials,
                seed=args.seed,
                workers=args.workers,
                in_flight=args.in_flight,
                storage=args.storage,
                runs_dir=args.runs_dir,
                tracking=args.tracking,
                listeners=[line, stop],
                evaluate=args.evaluate,
            )
        except KeyboardInterrupt:
            command = shlex.join([terminal.command("dynosim"), *sys.argv[1:]])
            kept = (
                f"; {len(line.study.trials)} trials and a report are in {args.runs_dir}/{line.study.id}"
                if line.study
                else ""
            )
            print(f"interrupted{kept}\nto go on: {command}", file=sys.stderr)
            return INTERRUPTED
    _print_study(study, args)
    return OK if study.frontier() else NOTHING_FEASIBLE


def _ask(args: argparse.Namespace) -> int:
    names = ("overrides", "trace", "objectives", "trials", "seed", "sampler", "storage")
    with _study_to_ask(args, **{name: getattr(args, name) for name in names}, tracking="off") as study:
        asked = study.pending if args.pending else (study.ask(new=True) for _ in range(args.count))
        for proposal in asked:
            if proposal is None:
                print(f"{len(study.trials)} of {study.budget} trials are told, the others pending", file=sys.stderr)
                break
            scenario = proposal.scenario.model_dump(mode="json")
            shown = {"run": study.id, "number": proposal.number, "label": proposal.scenario.deployment.label()}
            print(json.dumps({**shown, "point": proposal.point, "scenario": scenario}), flush=True)
    return OK


def _study_to_ask(args: argparse.Namespace, **options: Any) -> OpenStudy:
    from dynosim import run

    try:
        run_dir = run.find_run(args.study, args.runs_dir)
    except ConfigError:
        return run.open_study(args.study, runs_dir=args.runs_dir, **options)
    return _open_run(run_dir, **options)


def _open_run(run_dir: Path, *, storage: str | None, **options: Any) -> OpenStudy:
    """Open the run in *run_dir* as it was asked for; many jobs that tell at a time wait for each other."""
    from dynosim import run

    return run.open_study(
        run_dir / run.CONFIG_FILE,
        storage=storage or run.RunState.read(run_dir).storage or None,
        runs_dir=run_dir.parent,
        run_id=run_dir.name,
        wait_s=ASK_TIMEOUT_S,
        **options,
    )


def _tell(args: argparse.Namespace) -> int:
    from dynosim.run import find_run
    from dynosim.search.answer import Answer

    answers = list(_answers(args))
    with _open_run(find_run(args.run, args.runs_dir), storage=args.storage, tracking=args.tracking) as study:
        for number, said in answers:
            trial = study.tell(number, **vars(Answer.of(said)))
            verdict = "feasible" if trial.outcome.feasible else "not feasible"
            print(f"trial {number}: {trial.outcome.status}, {verdict}; {len(study.trials)} of {study.budget} told")
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
    from dynosim.calibration.readers import read_metrics

    return {**said, "metrics": read_metrics(said["metrics"])} if isinstance(said.get("metrics"), str) else said


def _dry_run(space: SearchSpace) -> int:
    from rich.table import Table

    from dynosim.rng import stream
    from dynosim.space import reasons

    print(space.to_yaml(), end="")
    table = Table(title=f"{space.name}: {space.size():.3g} points")
    for head in ("parameter", "domain", "values", "when", "baseline"):
        table.add_column(head, overflow="fold")
    for row in space.describe():
        table.add_row(*("" if cell is None else str(cell) for cell in row.values()))
    _console(sys.stderr).print(table)
    found = reasons.sampled(space, stream(0, "dry run"))
    impossible = [reason for reason in found if reason is not None]
    if impossible:
        share = f"{len(impossible):,} of {len(found):,} random points"
        print(f"{share} cannot be deployed: {reasons.summary(impossible)}", file=sys.stderr)
    return NOTHING_FEASIBLE if len(impossible) == len(found) else OK


def _predict(args: argparse.Namespace) -> int:
    from dynosim import run
    from dynosim.report import terminal
    from dynosim.views import prediction_view

    prediction = run.predict(args.config, overrides=args.overrides, trace=args.trace, seeds=args.seeds)
    if args.capture_requests:
        run.write_requests(prediction.result, args.capture_requests)
    view = prediction_view(prediction)
    if args.format == "json":
        _print_json(view)
    else:
        missed = [name for name, violation in view["slo_violations"].items() if violation is None or violation > 0.0]
        of = f", mean of {len(view['cases'])} cases" if view["cases"] else ""
        _print_metrics(f"{view['name']}: {view['label']} on {view['gpus']} GPUs{of}", view)
        if prediction.outcome:
            _console(sys.stdout).print(terminal.cases_table(prediction.scenario, prediction.outcome))
        print(view["bottleneck"])
        print(f"prices: {terminal.prices_line(view['prices'])}")
        print(f"engine rules: {view['engine_rules']}")
        print(f"SLO: {'missed: ' + ', '.join(missed) if missed else 'met' if view['slo_violations'] else 'none given'}")
    return OK


def _compare(args: argparse.Namespace) -> int:
    from dynosim.compare import compare_workloads
    from dynosim.progress import GracefulStop, ProgressLine
    from dynosim.report import comparison

    with GracefulStop() as stop, ProgressLine(_console(sys.stderr), quiet=args.quiet) as line:
        found = compare_workloads(
            *args.spaces,
            trials=args.trials,
            seed=args.seed,
            overrides=args.overrides,
            runs_dir=args.runs_dir,
            tracking=args.tracking,
            workers=args.workers,
            listeners=[line, stop],
        )
    view = found.view()
    if args.format == "json":
        _print_json(view)
    else:
        for table in comparison.tables(view):
            _console(sys.stdout).print(table)
        print(f"page and data: comparison.html and comparison.json of {list(view['runs'].values())[-1]}")
    return OK if found.rows else NOTHING_FEASIBLE


def _show(args: argparse.Namespace) -> int:
    from dynosim import run

    study = run.load_study(args.run, args.runs_dir, storage=args.storage)
    if args.trial is not None:
        return _show_trial(study, args)
    if args.format == "csv":
        _print_csv(study, study.recommended() if args.frontier else study.trials)
    else:
        _print_study(study, args)
    return OK


def _show_trial(study: Study, args: argparse.Namespace) -> int:
    from dynosim.report import terminal
    from dynosim.views import explained

    found = [trial for trial in study.trials if trial.number == args.trial]
    if not found:
        raise ConfigError(f"--trial {args.trial}: {study.id} has no such trial; it has {len(study.trials)}")
    if args.format == "csv":
        _print_csv(study, found)
    elif args.format == "json":
        _print_json(explained(found[0]))
    else:
        view = explained(found[0])
        _print_metrics(f"trial {args.trial}: {view['label']} on {view['gpus']} GPUs", view)
        if found[0].outcome.cases:
            _console(sys.stdout).print(terminal.cases_table(found[0].scenario, found[0].outcome))
        for path, value in view["point"].items():
            print(f"{path} = {value}")
        if view["bottleneck"]:
            print(view["bottleneck"])
        print(f"{view['status']} {view['reason']}".strip())
    return OK


def _launch(args: argparse.Namespace) -> int:
    from dynosim.report import launch_script
    from dynosim.run import load_space
    from dynosim.space import feasibility

    scenario = load_space(args.config, overrides=args.overrides).deployed()
    feasibility.check(scenario)
    print(launch_script(scenario), end="")
    return OK


def _config_validate(args: argparse.Namespace) -> int:
    from dynosim.run import load_space
    from dynosim.space import feasibility

    space = load_space(args.config, overrides=args.overrides)
    if not space.parameters:
        feasibility.check_start(space.reference)
    kind = f"space of {len(space.parameters)} parameters, {space.size():.4g} points" if space.parameters else "scenario"
    print(f"{args.config}: valid {kind}")
    return OK


def _config_expand(args: argparse.Namespace) -> int:
    from dynosim.config.load import dump
    from dynosim.run import load_space

    space = load_space(args.config, overrides=args.overrides)
    print(dump(_filled(space.fields, space.reference.model_dump(mode="json", exclude_none=True))), end="")
    return OK


def _filled(said: Any, defaults: Any) -> Any:
    """Return what a file says with *defaults* where it says nothing; a search domain stays as it is."""
    from dynosim.config.load import is_domain

    if not isinstance(said, Mapping) or not isinstance(defaults, dict) or is_domain(said):
        return said
    return {**{key: _filled(value, defaults.get(key)) for key, value in said.items()}, **_missing(said, defaults)}


def _missing(said: Mapping[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in defaults.items() if key not in said}


def _config_schema(args: argparse.Namespace) -> int:
    from dynosim.space import json_schema

    _print_json(json_schema())
    return OK


def _config_coverage(args: argparse.Namespace) -> int:
    from dynosim.space import coverage

    print(coverage.markdown(), end="")
    return OK


def _config_init(args: argparse.Namespace) -> int:
    from dynosim.space import find_space

    text = find_space(args.space).read_text(encoding="utf-8")
    # Where ``dynosim config schema > space.schema.json`` puts it: the bundled file's own path is not theirs.
    print(text.replace("$schema=../schema/", "$schema="), end="")
    return OK


def _spaces(args: argparse.Namespace) -> int:
    from dynosim.space import SearchSpace, bundled_spaces

    spaces = [SearchSpace.load(name) for name in bundled_spaces()]
    rows = [
        {
            "space": space.name,
            "model": space.reference.deployment.model,
            "gpu": space.reference.deployment.gpu,
            "parameters": len(space.parameters),
            "points": space.size(),
            "description": space.reference.description,
        }
        for space in spaces
    ]
    _print_rows(rows, args.format)
    return OK


def _trace_stats(args: argparse.Namespace) -> int:
    from dynosim.workload import describe, read_trace

    stats = describe(read_trace(args.path))
    if args.format == "json":
        _print_json(stats)
    else:
        _print_rows([{"statistic": key, "value": value} for key, value in _flat(stats)], args.format)
    return OK


def _flat(stats: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value), of nested mappings as ``name.key``."""
    for key, value in stats.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", each) for inner, each in _flat(value))
        else:
            yield key, value


def _timing_list(args: argparse.Namespace) -> int:
    from dynosim.timing.pack import BUNDLED, USER_FOLDER

    folders = dict.fromkeys((Path(os.environ.get("DYNOSIM_TIMING_PACKS", USER_FOLDER)), Path(USER_FOLDER), BUNDLED))
    rows = [
        {"pack": path.stem, "folder": str(folder), "kB": round(path.stat().st_size / 1e3, 1)}
        for folder in folders
        for path in sorted(folder.glob("*.npz"))
    ]
    _print_rows(rows, args.format)
    return OK


def _timing_build(args: argparse.Namespace) -> int:
    from dynosim.timing import build
    from dynosim.timing.pack import DEFAULT_SIZES

    path = build(
        args.model,
        args.gpu,
        args.engine,
        args.quantization,
        kv_cache_dtype=args.kv_cache_dtype,
        expert_parallel=args.enable_expert_parallel,
        version=args.engine_version,
        mxfp8_activations=args.mxfp8_activations,
        tensor_parallel_sizes=tuple(args.tensor_parallel_size or DEFAULT_SIZES),
        data_parallel_sizes=tuple(args.data_parallel_size or (1,)),
    )
    print(path)
    return OK


def _validate(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from dynosim.fidelity import document
    from dynosim.fidelity.outcomes import row_of, save
    from dynosim.fidelity.validate import find_set, score_set, write_bands

    sets = [find_set(name) for name in args.set or [None]]
    if args.only != "*" and (args.write_docs or args.write_bands):
        raise ConfigError("--only: the page and the bands are of the whole set")
    outcomes = _outcomes(args, sets)
    if args.write_bands:
        print(write_bands(sets, outcomes), file=sys.stderr)
    if args.save:
        print(save(Path(args.save), outcomes), file=sys.stderr)
    scores = score_set(sets, outcomes)
    if args.format == "json":
        _print_json(asdict(scores) | {"rows": [row_of(outcome) for outcome in outcomes]})
    else:
        for section in document.sections(scores, outcomes) if args.details else document.summary(scores):
            _print_section(section)
    if args.write_docs:
        print(document.write_docs(Path(args.write_docs), scores, outcomes), file=sys.stderr)
    return OK


def _outcomes(args: argparse.Namespace, sets: Sequence[Path]) -> list[Outcome]:
    """Return what `dynosim validate` scores: saved outcomes, or replayed ones."""
    from dynosim.fidelity.outcomes import read_outcomes
    from dynosim.fidelity.validate import print_progress, read_rows, validate

    if args.outcomes:
        return read_outcomes(Path(args.outcomes), read_rows(sets, args.only))
    listener = None if args.quiet else print_progress
    return validate(sets, only=args.only, workers=args.workers or "auto", listener=listener)


def _calibrate(args: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from dynosim.calibration import Measurement, calibrate, read_manifest
    from dynosim.report import terminal

    if not args.measured and (args.overrides or args.server_log or args.metrics):
        raise ConfigError(
            "--set, --server-log, --metrics: a manifest has its own; with a configuration name result files"
        )
    if len(args.metrics) > 2:
        raise ConfigError(f"--metrics: given {len(args.metrics)} times: allowed: after the runs, or before and after")
    given = {"config": args.config, "overrides": args.overrides, "measured": args.measured}
    given |= {"server_log": args.server_log, "metrics": args.metrics}
    measurements = [Measurement.model_validate(given)] if args.measured else read_manifest(args.config)
    name = args.name or re.sub(r"[^\w.-]+", "-", Path(args.config).stem)
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"--name {name!r}: allowed: letters, digits, '_', '.' and '-'")
    calibration = calibrate(measurements, name=name, created=datetime.now(UTC).isoformat(timespec="seconds"))
    path = calibration.profile.save(Path(args.out))
    if args.format == "json":
        _print_json({"path": str(path), **calibration.profile.model_dump(mode="json")})
    else:
        _console(sys.stdout).print(terminal.calibration_summary(calibration, path))
    return OK


def _track_sync(args: argparse.Namespace) -> int:
    from dynosim.run import find_run
    from dynosim.tracking import sync

    print(f"{sync(find_run(args.run, args.runs_dir))} trials delivered")
    return OK


def _track_ui(args: argparse.Namespace) -> int:
    from dynosim.tracking import tracking_uri
    from dynosim.tracking.ui import open_ui

    return open_ui(tracking_uri("auto", Path(args.runs_dir)), args.host, args.port)


def _serve(args: argparse.Namespace) -> int:
    from dynosim.service import make_server

    traces = Path(args.traces) if args.traces else None
    server = make_server(
        args.runs_dir, host=args.host, port=args.port, storage=args.storage, traces=traces, allow=args.allow
    )
    print(f"dynosim on http://{args.host}:{args.port}, Ctrl-C ends it", file=sys.stderr)
    server.run()
    return OK


def _doctor(args: argparse.Namespace) -> int:
    """Print one line per check; each is a function that returns what it found or raises why not."""
    failed = 0
    for name, check in (
        ("python", _doctor_python),
        ("packages", _doctor_packages),
        ("runs", lambda: _doctor_runs(Path(args.runs_dir))),
        ("tracking", lambda: _doctor_tracking(Path(args.runs_dir))),
        ("extras", _doctor_extras),
        ("self-test", _doctor_self_test),
    ):
        try:
            print(f"ok    {name:<10} {check()}")
        except (DynosimError, OSError, PackageNotFoundError) as error:
            failed += 1
            print(f"FAIL  {name:<10} {error}")
    return FAILURE if failed else OK


def _doctor_python() -> str:
    return f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"


def _doctor_packages() -> str:
    names = ("numpy", "numba", "simpy", "torch", "botorch", "optuna", "mlflow", "fastapi")
    return ", ".join(f"{name} {version(name)}" for name in names)


def _doctor_extras() -> str:
    extras = {"aic": "aiconfigurator_core", "postgresql": "psycopg", "dashboard": "optuna_dashboard"}
    return ", ".join(f"[{extra}] {'yes' if find_spec(module) else 'no'}" for extra, module in extras.items())


def _doctor_runs(runs_dir: Path) -> str:
    from tempfile import TemporaryFile

    runs_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=runs_dir):
        return f"{runs_dir.resolve()} can be written"


def _doctor_tracking(runs_dir: Path) -> str:
    from dynosim.tracking import tracking_uri
    from dynosim.tracking.delivery import delivery_errors
    from dynosim.tracking.store import connect

    uri = tracking_uri("auto", runs_dir)
    if uri is None:
        return "off"
    try:
        return f"{uri}, {len(connect(uri).search_experiments())} experiments"
    except delivery_errors() as error:
        raise StudyError(f"MLflow at {uri}: {error}") from error


def _doctor_self_test() -> str:
    from dynosim import run

    start_s = time.perf_counter()
    completed = run.predict("tiny").metrics.value("completed", None)
    return f"tiny: {completed:.0f} requests simulated in {time.perf_counter() - start_s:.1f} s"


# ---- output -------------------------------------------------------------------------------------------------------


def _console(stream: TextIO) -> Console:
    """Return a console that is plain where *stream* is no terminal (or NO_COLOR is set: rich reads that itself)."""
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    print()


def _print_csv(study: Study, trials: Sequence[Trial]) -> None:
    from dynosim.report.files import table

    table(study, trials).to_csv(sys.stdout, index=False)


def _print_study(study: Study, args: argparse.Namespace) -> None:
    from dynosim.report import terminal
    from dynosim.run import find_run
    from dynosim.tracking import tracking_uri
    from dynosim.tracking.outbox import Outbox
    from dynosim.views import frontier_view

    run_dir = find_run(study.id, args.runs_dir)
    if args.format == "json":
        _print_json({**frontier_view(study), "run_dir": str(run_dir)})
    elif getattr(args, "frontier", False):
        _console(sys.stdout).print(terminal.frontier_table(study, whole=True))
    else:
        tracked = "auto" if Outbox(run_dir).folder.is_dir() else "off"
        uri = tracking_uri(getattr(args, "tracking", tracked), Path(args.runs_dir))
        _console(sys.stdout).print(terminal.summary(study, run_dir, uri), crop=False)


def _print_section(section: Section) -> None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    table = Table(*section.head, title=section.title, caption=section.note or None, box=SIMPLE)
    table.title_justify = table.caption_justify = "left"
    for row in section.rows:
        table.add_row(*map(Text, row))
    _console(sys.stdout).print(table if section.rows else f"{section.title}: {section.empty}", highlight=False)


def _print_rows(rows: list[dict[str, Any]], form: str) -> None:
    from rich.table import Table

    if form == "json":
        return _print_json(rows)
    table = Table(*(rows[0] if rows else ()))
    for row in rows:
        table.add_row(
            *("" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in row.values())
        )
    _console(sys.stdout).print(table)


def _print_metrics(title: str, view: Mapping[str, Any]) -> None:
    """Print one row per metric of a prediction or a trial; a scalar stands in the first column."""
    from rich.table import Table

    from dynosim.metrics import METRICS
    from dynosim.report.analysis import plus_minus
    from dynosim.report.numbers import number
    from dynosim.uncertainty.model_band import TAIL

    stats, bands = ("avg", "p50", "p90", "p99"), view["model_bands"]
    noise = [f"evidence: {view['evidence']}"] * bool(view["evidence"])
    noise += ["±: 95 % sampling interval"] * bool(view["intervals"])
    table = Table(
        "metric", "unit", title=title, title_justify="left", caption="; ".join(noise) or None, caption_justify="left"
    )
    for stat in stats:
        table.add_column(stat, justify="right")
    for what in (f"real / this\n({view['evidence']})", "of p99") if bands else ():
        table.add_column(what, justify="right")
    for name, value in (view["metrics"] or {}).items():
        found = value if isinstance(value, Mapping) else {"avg": value}
        cells = []
        for stat in stats if isinstance(value, Mapping) else ("avg",):
            known = found.get(stat)
            ends = view["intervals"].get(name if stat == "avg" else f"{name}.{stat}")
            cells.append("–" if known is None else f"{number(known)} {plus_minus(known, ends)}".strip())
        factors = [
            "{:.2f}-{:.2f}".format(*bands[key]) if key in bands and value is not None else ""
            for key in ((name, name + TAIL) if bands else ())
        ]
        unit = METRICS[name].unit if name in METRICS else ""
        table.add_row(name, unit, *cells, *[""] * (len(stats) - len(cells)), *factors)
    _console(sys.stdout).print(table)
