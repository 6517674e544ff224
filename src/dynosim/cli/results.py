"""``dynosim predict``, ``show`` and ``launch``: one configuration, or a run again."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from dynosim.cli.arguments import (
    add_verb,
    format_option,
    input_folder,
    output_file,
    overrides_option,
    positive,
    runs_dir_option,
    trace_option,
)
from dynosim.cli.output import OK, console, print_csv, print_json, print_metrics, print_study
from dynosim.errors import ConfigError

if TYPE_CHECKING:
    from dynosim.search.study import Study


def add_predict(verbs: Any) -> None:
    parents = [overrides_option(), trace_option(), format_option()]
    parser = add_verb(verbs, "predict", _predict, "simulate one configuration", parents)
    parser.add_argument("config", metavar="CONFIG", help="YAML file of one configuration; of a space: its baseline")
    parser.add_argument(
        "--capture-requests", type=output_file, metavar="FILE.parquet", help="also write one row per request"
    )
    parser.add_argument(
        "--seeds", type=positive, default=1, metavar="N", help="mean and interval over N runs with other traffic"
    )


def _predict(args: argparse.Namespace) -> int:
    from dynosim.report import terminal
    from dynosim.run.predict import predict, write_requests
    from dynosim.views import prediction_view

    prediction = predict(args.config, overrides=args.overrides, trace=args.trace, seeds=args.seeds)
    if args.capture_requests:
        write_requests(prediction.result, args.capture_requests)
    view = prediction_view(prediction)
    if args.format == "json":
        print_json(view)
    else:
        missed = [name for name, violation in view["slo_violations"].items() if violation is None or violation > 0.0]
        of = f", mean of {len(view['cases'])} cases" if view["cases"] else ""
        print_metrics(f"{view['name']}: {view['label']} on {view['gpus']} GPUs{of}", view)
        if prediction.outcome:
            console(sys.stdout).print(terminal.cases_table(prediction.scenario, prediction.outcome))
        print(view["bottleneck"])
        print(f"prices: {terminal.prices_line(view['prices'])}")
        print(f"engine rules: {view['engine_rules']}")
        print(f"SLO: {'missed: ' + ', '.join(missed) if missed else 'met' if view['slo_violations'] else 'none given'}")
    return OK


def add_show(verbs: Any) -> None:
    parser = add_verb(verbs, "show", _show, "show a run again", [format_option("csv"), runs_dir_option(input_folder)])
    parser.add_argument("run", metavar="RUN", help="run id, its directory, or 'last'")
    parser.add_argument("--storage", metavar="URL", help="where the trials are, if it needs a password")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--frontier", action="store_true", help="only the frontier, without picks and next steps")
    what.add_argument("--trial", type=int, metavar="N", help="one trial with all its metrics")


def _show(args: argparse.Namespace) -> int:
    from dynosim.run.directory import find_run
    from dynosim.run.study import load_study

    run_dir = find_run(args.run, args.runs_dir)
    study = load_study(run_dir, storage=args.storage)
    if args.trial is not None:
        return _show_trial(study, args)
    if args.format == "csv":
        print_csv(study, study.recommended() if args.frontier else study.trials)
    else:
        print_study(study, run_dir, args)
    return OK


def _show_trial(study: Study, args: argparse.Namespace) -> int:
    from dynosim.report import terminal
    from dynosim.views import explained

    found = [trial for trial in study.trials if trial.number == args.trial]
    if not found:
        raise ConfigError(f"--trial {args.trial}: {study.id} has no such trial; it has {len(study.trials)}")
    if args.format == "csv":
        print_csv(study, found)
    elif args.format == "json":
        print_json(explained(found[0]))
    else:
        view = explained(found[0])
        print_metrics(f"trial {args.trial}: {view['label']} on {view['gpus']} GPUs", view)
        if found[0].outcome.cases:
            console(sys.stdout).print(terminal.cases_table(found[0].scenario, found[0].outcome))
        for path, value in view["point"].items():
            print(f"{path} = {value}")
        if view["bottleneck"]:
            print(view["bottleneck"])
        print(f"{view['status']} {view['reason']}".strip())
    return OK


def add_launch(verbs: Any) -> None:
    summary = "print the commands that start real servers like a configuration"
    parser = add_verb(verbs, "launch", _launch, summary, [overrides_option()])
    parser.add_argument("config", metavar="CONFIG", help="YAML file of one configuration; of a space: its baseline")


def _launch(args: argparse.Namespace) -> int:
    from dynosim.report import launch_script
    from dynosim.run.spaces import load_space
    from dynosim.space import feasibility

    scenario = load_space(args.config, overrides=args.overrides).deployed()
    feasibility.check(scenario)
    print(launch_script(scenario), end="")
    return OK
