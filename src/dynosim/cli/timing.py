"""``dynosim timing``, ``validate`` and ``calibrate``: kernel times and real measurements."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.cli.arguments import add_group, add_verb, format_option, output_folder, overrides_option, positive
from dynosim.cli.output import OK, console, print_json, print_rows, print_section
from dynosim.errors import ConfigError

if TYPE_CHECKING:
    from dynosim.fidelity.replay import Outcome


def add_timing(verbs: Any) -> None:
    group = add_group(verbs, "timing", "measured kernel times")
    add_verb(group, "list", _timing_list, "list the timing packs at hand", [format_option()])
    parser = add_verb(group, "build", _timing_build, "make timing packs from aiconfigurator-core (extra [aic])")
    parser.add_argument("--model", required=True, help="for example llama-3.1-70b")
    parser.add_argument("--gpu", required=True, help="for example h100_sxm")
    parser.add_argument("--engine", default="vllm", help="an engine's name, as in deployment.engine.name")
    parser.add_argument("--engine-version", default="current", metavar="VERSION")
    parser.add_argument("--quantization", default="none", choices=("none", "fp8", "nvfp4"))
    parser.add_argument("--kv-cache-dtype", default="auto", choices=("auto", "bf16", "fp8"))
    parser.add_argument("--enable-expert-parallel", action="store_true")
    parser.add_argument("--mxfp8-activations", action="store_true", help="of MXFP4 experts under vLLM on Blackwell")
    parser.add_argument(
        "--tensor-parallel-size", type=positive, action="append", metavar="N", help="repeatable (default: 1 2 4 8)"
    )
    parser.add_argument(
        "--data-parallel-size", type=positive, action="append", metavar="N", help="repeatable (default: 1)"
    )


def _timing_list(args: argparse.Namespace) -> int:
    from dynosim.timing.pack import BUNDLED, USER_FOLDER

    folders = dict.fromkeys((Path(os.environ.get("DYNOSIM_TIMING_PACKS", USER_FOLDER)), Path(USER_FOLDER), BUNDLED))
    rows = [
        {"pack": path.stem, "folder": str(folder), "kB": round(path.stat().st_size / 1e3, 1)}
        for folder in folders
        for path in sorted(folder.glob("*.npz"))
    ]
    print_rows(rows, args.format)
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


def add_validate(verbs: Any) -> None:
    parser = add_verb(
        verbs, "validate", _validate, "compare predictions with measurements of real GPUs", [format_option()]
    )
    parser.add_argument(
        "--set",
        action="append",
        metavar="SET",
        help="CSV of measurements, or a folder of some; repeatable (default: those that come with dynosim)",
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="rows whose id matches")
    parser.add_argument("--details", action="store_true", help="also sweeps, rankings, effects, logs and every row")
    parser.add_argument("--workers", type=positive, metavar="N", help="rows at a time (default: all cores)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--save", metavar="FILE", help="write all predictions to FILE")
    parser.add_argument("--outcomes", metavar="FILE", help="predictions that --save wrote, in place of a replay")
    parser.add_argument(
        "--write-docs",
        type=output_folder,
        metavar="DIR",
        nargs="?",
        const="docs",
        help="write fidelity.md and its plots (default: docs)",
    )
    parser.add_argument("--write-bands", action="store_true", help="renew this package's error bands (maintainers)")


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
        print_json(asdict(scores) | {"rows": [row_of(outcome) for outcome in outcomes]})
    else:
        for section in document.sections(scores, outcomes) if args.details else document.summary(scores):
            print_section(section)
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


def add_calibrate(verbs: Any) -> None:
    summary = "fit a profile of multipliers to results of AIPerf, vLLM bench, GuideLLM or SGLang"
    parser = add_verb(verbs, "calibrate", _calibrate, summary, [overrides_option(), format_option()])
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
        type=output_folder,
        default="calibrations",
        metavar="DIR",
        help="where to write it (default: calibrations)",
    )


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
        print_json({"path": str(path), **calibration.profile.model_dump(mode="json")})
    else:
        console(sys.stdout).print(terminal.calibration_summary(calibration, path))
    return OK
