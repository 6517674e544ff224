"""A set is replayed row by row whatever happens in one of them, what lies beside it is read, and pages are written."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from dynosim import cli
from dynosim.engines import Behaviour
from dynosim.errors import ConfigError
from dynosim.fidelity import document, validate
from dynosim.fidelity.bands import BAND_CONFIGURATIONS
from dynosim.fidelity.deployments import deployment_of
from dynosim.fidelity.errors import TPOT, TTFT
from dynosim.fidelity.measurements import Measurement, read_measurements
from dynosim.fidelity.replay import Outcome, replay
from dynosim.fidelity.workloads import requests_of, workload_of
from dynosim.search import workers
from fidelity.rows import DENSE, MOE, exact, outcome, sweep, write_set

ROOT = Path(__file__).parents[2]
IDS = [{"id": name} for name in ("b-c4", "crash-c4", "a-c8", "a-c4")]


# ---- replaying ----------------------------------------------------------------------------------------------------


def test_a_crash_is_the_problem_of_its_row_alone(tmp_path: Path) -> None:
    outcomes = validate.validate(write_set(tmp_path, *IDS), workers=1, replay=exact)
    assert [o.measurement.id for o in outcomes] == [row["id"] for row in IDS]
    assert [o.problem for o in outcomes if o.problem] == [outcomes[1].problem]
    assert re.fullmatch(r"crashed at rows.py:\d+: ZeroDivisionError: no requests at all", outcomes[1].problem or "")


class _Process:
    """Stands for a worker process, which dies of a row."""

    def __init__(self, do: Callable[[Measurement], Outcome], limit_s: float | None) -> None:
        self._do = do

    def __call__(self, row: Measurement) -> Outcome:
        if row.id.startswith("die"):
            raise BrokenExecutor
        return self._do(row)

    def close(self) -> None: ...


def test_rows_keep_their_order_and_outlive_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_Process", _Process)
    path, seen = write_set(tmp_path, *IDS, {"id": "die-c4"}, {"id": "z-c4"}), []
    outcomes = validate.validate(path, workers=2, replay=exact, listener=lambda *told: seen.append(told))
    assert seen == [(outcome, done, 6) for done, outcome in enumerate(outcomes, 1)]
    assert [o.measurement.id for o in outcomes] == [*(row["id"] for row in IDS), "die-c4", "z-c4"]
    assert [o.measurement.id for o in outcomes if o.problem] == ["crash-c4", "die-c4"]
    assert outcomes[4].problem == workers.DIED


def test_rows_are_replayed_in_processes(tmp_path: Path) -> None:
    path = write_set(tmp_path, *IDS[2:])
    assert [o.predicted for o in validate.validate(path, workers=2, replay=exact)] == [
        row.measured for row in read_measurements(path)
    ]


def test_only_takes_the_rows_whose_id_matches(tmp_path: Path) -> None:
    path = write_set(tmp_path, *IDS)
    assert [o.measurement.id for o in validate.validate(path, only="a-*", workers=1, replay=exact)] == ["a-c8", "a-c4"]
    with pytest.raises(ConfigError, match="nothing: no row"):
        validate.validate(path, only="nothing", replay=exact)


def test_a_set_is_a_file_or_every_csv_of_a_folder(tmp_path: Path) -> None:
    first = write_set(tmp_path, IDS[0])
    write_set(tmp_path, IDS[2], IDS[3]).rename(tmp_path / "other.csv")
    write_set(tmp_path, IDS[0])
    (tmp_path / "baseline_tool.csv").write_text("id\n")
    assert validate.find_set(first) == first
    assert [row.id for row in read_measurements(validate.find_set(first))] == ["b-c4"]
    assert [row.id for row in read_measurements(validate.find_set(tmp_path))] == ["b-c4", "a-c8", "a-c4"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id,model\na,b\n", "no column gpu"),
        ("", "no column id"),
        (b"\xff\xfe", "cannot be read"),
        (None, "a second row"),
    ],
)
def test_a_bad_csv_in_a_folder_is_named_in_one_line(content: str | bytes | None, says: str, tmp_path: Path) -> None:
    write_set(tmp_path, IDS[0])
    second = content if content is not None else (tmp_path / "calibration.csv").read_bytes()
    (tmp_path / "second.csv").write_bytes(second.encode() if isinstance(second, str) else second)
    with pytest.raises(ConfigError, match=says) as error:
        read_measurements(tmp_path)
    assert "second.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_package_s_rows_say_where_they_are_from_and_have_what_they_name() -> None:
    rows = read_measurements(validate.find_set(None))
    assert all(row.source and row.commit and row.licence for row in rows)
    named = {name for row in rows for name in re.findall(r"[\w.-]+\.(?:csv|jsonl)\.gz", row.notes)}
    beside = {path.name for path in validate.MEASURED.iterdir()}
    assert named == {name for name in beside if name.endswith(".gz")}, "every file is named by a row"
    assert max(path.stat().st_size for path in validate.MEASURED.iterdir()) < 1_000_000


@pytest.mark.parametrize(
    ("notes", "says"), [("replay gone.csv.gz", "gone.csv.gz: not beside"), ("", "the notes name no .csv or .jsonl")]
)
def test_a_trace_that_is_not_there_is_said(notes: str, says: str, tmp_path: Path) -> None:
    path = write_set(tmp_path, {"load_kind": "open-loop trace", "notes": notes})
    with pytest.raises(ConfigError, match=says):
        workload_of(read_measurements(path)[0])


def test_a_trace_of_token_blocks_is_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(
        '{"timestamp": 0, "input_length": 40, "output_length": 2, "hash_ids": [1, 2, 3]}\n'
    )
    path = write_set(tmp_path, {"load_kind": "open-loop trace", "notes": "replay own.jsonl (16-token blocks)"})
    assert requests_of(read_measurements(path)[0]).hash_block_tokens == 16


# ---- what lies beside a set ---------------------------------------------------------------------------------------


def test_baselines_are_taken_at_mean_lengths_where_there_are_two(tmp_path: Path) -> None:
    path = write_set(tmp_path, *IDS)
    head = "id,t_ttft_ms_nominal_len,t_tpot_ms_nominal_len,t_ttft_ms_mean_len,t_tpot_ms_mean_len,error\n"
    (tmp_path / "baseline_tool.csv").write_text(head + "a-c4,1,2,3,4,\na-c8,1,2,,,\nb-c4,,,,,OOM\n")
    assert validate.read_baseline(tmp_path / "baseline_tool.csv") == {
        "a-c4": {TTFT: 3.0, TPOT: 4.0}, "a-c8": {TTFT: 1.0, TPOT: 2.0}, "b-c4": {},
    }  # fmt: skip
    scored = validate.score_set(path, validate.validate(path, workers=1, replay=exact))
    assert {(b.name, b.metric, b.ours.rows) for b in scored.baselines} >= {("tool", TPOT, 2), ("tool", TTFT, 2)}


def test_logs_of_columns_and_of_timestamps_read_alike_in_order_of_arrival(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a_requests.csv.gz", "wt") as file:
        file.write("start_s,ttft_ms,latency_ms,input_tokens,output_tokens\n1,20,60,5,6\n0,10,50,3,4\n")
    stamps = [(3, 4, 0.0, 0.010, 0.050), (5, 6, 1.0, 1.020, 1.060)]
    names = ("input_toks", "output_toks", "queued_ts", "first_token_ts", "last_token_ts")
    with gzip.open(tmp_path / "b_requests.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in reversed(stamps))
    notes = [
        f"per-request log {name}; rest" for name in ("a_requests.csv.gz", "b_requests.jsonl.gz", "c_requests.csv.gz")
    ]
    rows = read_measurements(write_set(tmp_path, *({"id": text, "notes": text} for text in notes)))
    columns, timestamps, missing = map(validate.read_log, rows)
    assert missing is None
    assert columns is not None
    assert timestamps is not None
    for name, values in columns.items():
        np.testing.assert_allclose(timestamps[name], values, rtol=1e-9)
    assert columns["ttft_ms"].tolist() == [10.0, 20.0]


def test_bands_name_the_set_they_come_from(tmp_path: Path) -> None:
    sets = [write_set(tmp_path, *({"id": f"r{i}", "precision": str(i)} for i in range(BAND_CONFIGURATIONS)))]
    file = validate.write_bands(sets, validate.validate(sets, workers=1, replay=exact), tmp_path / "bands.json")
    bands = json.loads(file.read_text())
    told = bands["classes"][DENSE]["bands"]["inter_token_latency"]
    assert (told["rows"], told["configurations"], told["low"], told["high"]) == (*[BAND_CONFIGURATIONS] * 2, 1.0, 1.0)
    assert bands["sets"] == [validate.fingerprint(sets[0])]
    assert bands["coverage"] == 0.8


def test_kept_outcomes_are_scored_as_fresh_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, kept = str(write_set(tmp_path, {}, {"id": "odd", "gpu": "[odd]"})), str(tmp_path / "kept.json")
    told = []
    for source in (["--save", kept, "--workers", "1"], ["--outcomes", kept]):
        assert cli.main(["validate", "--set", path, "--quiet", "--format", "json", *source]) == cli.OK
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1]
    row = told[0]["rows"][0]
    assert (row["id"], row["evidence"], row["problem"], row["measured"][TPOT]) == ("own-l8b-c4", DENSE, None, 7.0)
    assert row["bands"]["inter_token_latency"][0] < 1.0 < row["bands"]["inter_token_latency"][1]
    other = str(write_set(tmp_path, {"id": "another"}))
    assert cli.main(["validate", "--set", other, "--outcomes", kept]) == cli.USAGE
    assert "no outcome of another" in capsys.readouterr().err


# ---- the verb -----------------------------------------------------------------------------------------------------


def test_the_verb_replays_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_set(tmp_path, {}))
    assert cli.main(["validate", "--set", path, "--workers", "1", "--format", "json"]) == cli.OK
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert captured.err == "1/1 own-l8b-c4\n"
    assert told["problems"] == {}
    assert told["totals"][0]["errors"][TPOT]["rows"] == 1
    row = told["rows"][0]
    assert (row["layout"], row["engine"], row["engine_version"], row["unread"]) == ("1xTP1", "vllm", "current", [])
    assert row["deployment"]["aggregated"]["max_num_seqs"] == 8
    assert 0.0 < told["totals"][0]["errors"][TPOT]["mape"] < 1.0


def test_tables_say_totals_first_then_groups_then_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = {"notes": "max_num_seqs 8, num_requests 20, painted red"}
    path = write_set(tmp_path, notes, {"id": "odd", "gpu": "[odd]"})
    assert cli.main(["validate", "--set", str(path), "--workers", "1", "--quiet"]) == cli.OK
    captured = capsys.readouterr()
    assert captured.err == ""
    titles = [
        "Targets", "Errors in total", "Errors by source", "owner (sweep)", "Rows without a prediction", "'[odd]'",
        "Unread notes", "painted red",
    ]  # fmt: skip
    places = [captured.out.index(title) for title in titles]
    assert places == sorted(places)


@pytest.mark.parametrize("arguments", [["--set", "missing.csv"], ["--set", "."], ["--only", "nothing"]])
def test_bad_input_is_one_line_and_exits_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["validate", *arguments]) == cli.USAGE
    assert capsys.readouterr().err.count("\n") == 1


def test_columns_that_may_be_absent_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(
        "id,model,gpu,n_gpus,engine,isl,osl,concurrency_or_rate,load_kind,ttft_ms_mean\n"
        "one,nvidia/Llama-3.1-8B-Instruct-FP8,H100,1,vllm,128,16,4,closed-loop concurrency,20\n"
    )
    (row,) = read_measurements(path)
    assert deployment_of(row).quantization == "fp8"
    assert (row.tp, row.notes, row.measured) == (None, "", {"ttft_ms_mean": 20.0})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"id": ""}, "an id, and at least one of"),
        ({"ttft_ms_mean": "", "tpot_ms_mean": ""}, "at least one of tpot_ms_mean"),
        ({"isl": "-1"}, "isl '-1': allowed: a number above 0"),
    ],
)
def test_a_row_that_says_nothing_is_one_line(row: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        read_measurements(write_set(tmp_path, row))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"load_kind": "ramp"}, "'ramp': allowed: closed-loop, open-loop"),
        ({"load_kind": "open-loop (10 s)", "concurrency_or_rate": "fast"}, "open-loop without a rate"),
    ],
)
def test_a_load_that_is_not_known_is_not_taken_for_another(row: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        workload_of(read_measurements(write_set(tmp_path, row))[0])


@pytest.mark.parametrize(("notes", "cached"), [("shared_prefix client; stage 1 of 2", True), ("plain client", False)])
def test_prompts_of_a_rate_come_again_only_where_the_notes_say_so(notes: str, cached: bool, tmp_path: Path) -> None:
    row = {"load_kind": "open-loop (10 s)", "concurrency_or_rate": "2", "notes": notes, "isl": "400"}
    predicted = replay(read_measurements(write_set(tmp_path, row))[0]).predicted
    assert (predicted["prefix_hit_percent"] > 80.0) == cached


# ---- the page -----------------------------------------------------------------------------------------------------


def _headings(text: str) -> list[str]:
    return re.findall(r"^#+ .*", text, re.MULTILINE)


def test_the_page_holds_every_table_and_number_of_the_command(tmp_path: Path) -> None:
    outcomes = [*sweep([100.0, 120.0, 9_000.0], [110.0, 130.0, 8_000.0]), outcome("moe", evidence=MOE)]
    scored = validate.score(outcomes)
    page = document.write_docs(tmp_path, scored, outcomes).read_text()
    for section in document.sections(scored, outcomes):
        assert f"## {section.title}\n" in page
        assert all("| " + " | ".join(row) + " |" in page for row in section.rows)
    for link in re.findall(r"!\[.*\]\((.*)\)", page):
        assert (tmp_path / link).read_bytes().startswith(b"<?xml")


def test_the_page_in_docs_is_what_the_command_writes() -> None:
    page = (ROOT / "docs" / "fidelity.md").read_text()
    fresh = document.markdown(validate.score([outcome()]), [outcome()])
    assert _headings(page) == _headings(fresh)
    for tail in ("## What is fitted", "## What other tools publish", "## What is not modelled"):
        start, end = fresh.index(tail), fresh.find("\n## ", fresh.index(tail) + 1)
        assert fresh[start:end] in page


def test_the_package_s_bands_are_of_its_rows() -> None:
    assert validate.fingerprint(validate.MEASURED) in json.loads(validate.BANDS.read_text())["sets"]


def test_every_constant_of_the_engines_is_on_the_page() -> None:
    assert [*document.CONSTANTS] == [field.name for field in fields(Behaviour)]


def test_plots_do_not_depend_on_the_order_of_rows() -> None:
    rows = sweep([100.0, 120.0, 9_000.0], [110.0, 130.0, 8_000.0])
    assert document.scatter(rows, TPOT) == document.scatter(rows[::-1], TPOT)


# ---- the held-out set ---------------------------------------------------------------------------------------------

HELD_OUT = "silicon" + "_sample"
WATCHED = """
import ctypes, os, sys
from pathlib import Path
libc, seen = ctypes.CDLL(None, use_errno=True), []
sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event == "open" else None)
kernel = libc.inotify_init1(os.O_NONBLOCK)

def watch(path):  # whoever opens it, compiled readers too
    assert libc.inotify_add_watch(kernel, os.fsencode(path), 0x20) >= 0

def opened():
    try:
        return bool(os.read(kernel, 4096))
    except BlockingIOError:
        return False

rows, control, held_out = sys.argv[1:]
from importlib.util import find_spec
package = find_spec("aiconfigurator_core")
if package is not None:
    for path in Path(package.submodule_search_locations[0]).rglob(held_out + "*"):
        watch(path)
from dynosim.fidelity.errors import TPOT, TTFT
from dynosim.fidelity.measurements import read_measurements
from dynosim.fidelity.replay import replay
(row,) = read_measurements(rows)
assert replay(row).evidence == "tables/nvidia/dense"
assert any(name.endswith(".npz") for name in seen), "a pack is loaded"
if package is not None:
    from dynosim.timing import build
    build("llama-3.1-8b", "h100_sxm", "vllm", "none", tensor_parallel_sizes=(1,))
assert not [name for name in seen if held_out in name]
assert not opened()
watch(control)
open(control).close()
assert opened() and control in seen, "both watches work"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="inotify watches files")
def test_the_held_out_measurements_are_never_opened(tmp_path: Path) -> None:
    rows, control = write_set(tmp_path, {}), tmp_path / "control"
    control.touch()
    arguments = [str(rows), str(control), HELD_OUT]
    environment = os.environ | {"DYNOSIM_TIMING_PACKS": str(tmp_path / "packs")}
    code = [sys.executable, "-c", WATCHED, *arguments]
    done = subprocess.run(code, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
