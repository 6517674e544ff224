"""What users get wrong: each mistake is one line on stderr, the documented exit code, and leaves nothing behind."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynosim import cli
from dynosim.space import find_space

USAGE, NOTHING_FEASIBLE = cli.USAGE, cli.NOTHING_FEASIBLE
TINY = find_space("tiny").read_text()

FILES: dict[str, str | bytes] = {
    "file": "x\n",
    "empty.yaml": "",
    "binary.yaml": bytes(range(256)),
    "latin.yaml": "name: café\n".encode("latin-1"),
    "list.yaml": "- a\n- b\n",
    "tab.yaml": "name: x\n\tseed: 1\n",
    "bracket.yaml": "name: x\nworkload: {source: {type: synthetic\n",
    "duplicate.yaml": TINY.replace("seed: 0\n", "seed: 0\nseed: 1\n"),
    "dotted.yaml": TINY.replace("  aggregated:\n", "  aggregated.replicas: 2\n  aggregated:\n"),
    "twice.yaml": TINY.replace("slo: # ms\n", "slo:\n  ttft: {p99: 800}\n"),
    "alias.yaml": "a: &x 1\nb: *x\n",
    "colon.yaml": "name:x\nseed: 0\n",
    "empty.csv": "",
    "columns.csv": "a,b\n1,2\n",
    "words.jsonl": "hello\n",
    "keys.jsonl": '{"time": 1, "in": 3}\n',
    "binary.jsonl": bytes(range(256)),
    "unknown.json": '{"a": 1}',
    "broken.json": '{"a": ',
}

MISTAKES = [
    # verbs and options
    ("", USAGE, "VERB"),
    ("optimise tiny", USAGE, "did you mean 'optimize'"),
    ("optimize", USAGE, "SPACE"),
    ("optimize tiny llama8b", USAGE, "llama8b"),
    ("optimize tiny --trails 5", USAGE, "--trails"),
    ("optimize tiny --trials 0", USAGE, "--trials: 0: allowed: a whole number >= 1"),
    ("optimize tiny --trials 1e3", USAGE, "--trials: 1e3: allowed: a whole number >= 1"),
    ("optimize tiny --workers 0", USAGE, "--workers: 0: allowed: a whole number >= 1"),
    ("optimize tiny --in-flight 0", USAGE, "--in-flight: 0: allowed: a whole number >= 1"),
    ("optimize tiny --seed -1", USAGE, "--seed: -1: allowed: a whole number >= 0"),
    ("optimize tiny --format csv", USAGE, "--format: 'csv': allowed: table, json"),
    ("predict tiny --seeds 0", USAGE, "--seeds: 0"),
    ("predict tiny --seeds two", USAGE, "--seeds: two"),
    ("show last --frontier --trial 1", USAGE, "--trial: not allowed with argument --frontier"),
    ("serve --port 99999", USAGE, "--port: 99999: allowed: a whole number from 0 to 65535"),
    ("serve --port http", USAGE, "--port: http"),
    ("serve --host 0.0.0.0", USAGE, "--host 0.0.0.0: allowed without DYNOSIM_API_KEY"),
    ("serve --traces missing", USAGE, "--traces: missing: not a directory"),
    ("timing build --model llama-3.1-8b --gpu h100_sxm --engine tensorrt", USAGE, "'tensorrt': allowed: vllm"),
    ("config show", USAGE, "'show': allowed: validate, expand"),
    # spaces and files
    ("optimize tinny", USAGE, "did you mean 'tiny'"),
    ("config init tinny", USAGE, "did you mean 'tiny'"),
    ("config init absent.yaml", USAGE, "absent.yaml: cannot be read: no such file"),
    ("predict absent.yaml", USAGE, "absent.yaml: cannot be read: no such file"),
    ("predict folder", USAGE, "'folder': a directory"),
    ("predict ''", USAGE, "'': a directory"),
    ("predict words.jsonl", USAGE, "words.jsonl: not a YAML file"),
    ("predict empty.yaml", USAGE, "empty.yaml:1: must be a mapping"),
    ("predict binary.yaml", USAGE, "binary.yaml: cannot be read: not a UTF-8 text file"),
    ("predict latin.yaml", USAGE, "latin.yaml: cannot be read: not a UTF-8 text file"),
    ("predict list.yaml", USAGE, "list.yaml:1: must be a mapping"),
    ("predict tab.yaml", USAGE, "tab.yaml:2: YAML: found character '\\t'"),
    ("predict bracket.yaml", USAGE, "bracket.yaml:3: YAML: expected ',' or '}'"),
    ("predict colon.yaml", USAGE, "colon.yaml:2: YAML: mapping values are not allowed here"),
    ("predict duplicate.yaml", USAGE, "duplicate.yaml:8: seed: duplicate key"),
    ("predict dotted.yaml", USAGE, "a key with dots: nest it: aggregated: {replicas: ...}"),
    ("predict twice.yaml", USAGE, "slo.ttft.p99: given twice: ttft is time_to_first_token"),
    ("predict alias.yaml", USAGE, "alias.yaml:2: YAML: aliases are not supported"),
    # overrides
    ("predict tiny --set deployment.gpu", USAGE, "must be PATH=VALUE"),
    ("predict tiny --set =5", USAGE, "must be PATH=VALUE"),
    ("predict tiny --set deployment..gpu=l40s", USAGE, "must be PATH=VALUE"),
    ("predict tiny --set nonsense=1", USAGE, "nonsense: unknown key"),
    ("predict tiny --set deployment.gqu=l40s", USAGE, "deployment.gqu: unknown key: did you mean 'gpu'"),
    ("predict tiny --set budget.max_gpu=8", USAGE, "did you mean 'max_gpus'"),
    ("predict tiny --set deployment.aggregated.tp=2", USAGE, "deployment.aggregated.tp: unknown key"),
    ("predict tiny --set deployment.gpu='{choices: [l40s'", USAGE, "YAML: expected ',' or ']'"),
    ("predict tiny --set deployment.gpu=h100", USAGE, "deployment.gpu: 'h100': no such GPU; did you mean 'h100_sxm'"),
    ("predict tiny --set deployment.model=llama-8b", USAGE, "did you mean 'llama-3.1-8b'"),
    ("predict tiny --set deployment.engine.name=vlm", USAGE, "did you mean 'vllm'"),
    ("predict tiny --set deployment.engine=vllm", USAGE, "deployment.engine: vllm: allowed: a mapping"),
    ("predict tiny --set deployment.mode=disagg", USAGE, "did you mean 'disaggregated'"),
    ("predict tiny --set deployment.quantization=int4", USAGE, "int4: allowed: one of none, fp8"),
    ("predict tiny --set deployment.router.policy=round-robin", USAGE, "did you mean 'round_robin'"),
    ("predict tiny --set deployment.router.options.weight=3", USAGE, "deployment.router.options.weight"),
    ("predict tiny --set deployment.timing.type=packs", USAGE, "did you mean 'pack'"),
    ("predict tiny --set deployment.aggregated.replicas=2.5", USAGE, "replicas: 2.5: allowed: an integer > 0"),
    ("predict tiny --set deployment.aggregated.replicas=-2", USAGE, "replicas: -2: allowed: an integer > 0"),
    ("predict tiny --set deployment.aggregated.replicas='[1, 2]'", USAGE, "or a search domain {choices: [...]}"),
    ("predict tiny --set deployment.aggregated.replicas='{choices: []}'", USAGE, "a list of at least one value"),
    ("optimize tiny --set deployment.aggregated.replicas='{range: {min: 4, max: 1}}'", USAGE, "min 4 is above max 1"),
    ("predict tiny --set workload.load.rate_rps=0", USAGE, "workload.load.rate_rps: 0: allowed: a number > 0"),
    ("predict tiny --set workload.load.rate_rps=8rps", USAGE, "8rps: allowed: a number > 0, without a unit"),
    ("predict tiny --set workload.load.rate=8", USAGE, "did you mean 'rate_rps'"),
    ("predict tiny --set workload.source.input_tokens=100", USAGE, "a mapping with type fixed"),
    ("predict tiny --set workload.warmup_requests=300", USAGE, "less than the number of requests, 300"),
    ("predict tiny --set seed=-1", USAGE, "seed: -1: allowed: an integer >= 0"),
    ("predict tiny --set optimizer.seed=-1", USAGE, "optimizer.seed: -1: allowed: an integer >= 0"),
    ("predict tiny --set prices.table=aws", USAGE, "prices.table: aws: allowed: one of hyperscaler"),
    ("predict tiny --set prices.usd_per_gpu_hour.h100=2", USAGE, "prices.usd_per_gpu_hour.h100: 'h100': no such GPU"),
    ("predict tiny --set budget.max_gpus=0", USAGE, "budget.max_gpus: 0: allowed: an integer > 0"),
    ("predict tiny --set baseline={}", USAGE, "no baseline"),
    ("predict tiny --set deployment.calibration=mine", USAGE, "mine: no such profile"),
    # goals
    ("optimize tiny --objective ttft", USAGE, "objective 'ttft': time_to_first_token needs a statistic, such as"),
    ("optimize tiny --objective latency.p99", USAGE, "did you mean 'request_latency', 'inter_token_latency'"),
    ("optimize tiny --objective TTFTs.p99", USAGE, "'TTFTs': no such metric: did you mean 'ttft'"),
    ("optimize tiny --objective goals.py", USAGE, "'goals.py': allowed: METRIC, METRIC.STAT or file.py:function"),
    ("optimize tiny --objective ''", USAGE, "allowed: METRIC, METRIC.STAT or file.py:function"),
    ("optimize tiny --objective cost --objective cost", USAGE, "usd_per_million_output_tokens: given twice"),
    ("optimize tiny --objective ttft.p98", USAGE, "did you mean 'p99'"),
    ("optimize tiny --objective cost.p99", USAGE, "usd_per_million_output_tokens is one number without statistics"),
    ("optimize tiny --objective kv_cache_utilization", USAGE, "no better direction: set goal"),
    ("optimize tiny --objective absent.py:cost", USAGE, "absent.py"),
    ("optimize tiny --set slo.ttft.p99=500ms", USAGE, "500ms: allowed: a number >= 0 in the metric's unit"),
    ("optimize tiny --set slo.ttft=800", USAGE, "800: allowed: a bound for each statistic, such as {p99: 800}"),
    ("optimize tiny --set slo.ttft.p99=-1", USAGE, "-1: allowed: a number >= 0"),
    ("optimize tiny --set slo.tttf.p99=800", USAGE, "'tttf': no such metric: did you mean 'ttft'"),
    ("optimize tiny --set slo.goodput.p99=4", USAGE, "goodput is one number: allowed: min, max"),
    ("optimize tiny --set slo.good_request_fraction.min=99", USAGE, "99: allowed: a number from 0 to 1"),
    ("optimize tiny --sampler baies", USAGE, "did you mean 'bayes'"),
    ("optimize tiny --set optimizer.trials=lots", USAGE, "optimizer.trials: lots: allowed: an integer > 0"),
    ("optimize tiny --workers 1 --quiet --set optimizer.warm_start='[last]'", USAGE, "there is no earlier run"),
    # traces and measurements
    ("predict tiny --trace absent.jsonl", USAGE, "absent.jsonl: cannot read the trace"),
    ("predict tiny --trace folder", USAGE, "folder: cannot read the trace"),
    ("predict tiny --trace empty.csv", USAGE, "empty.csv:1: '': not a known trace"),
    ("predict tiny --trace columns.csv", USAGE, "columns.csv:1: 'a,b': not a known trace"),
    ("predict tiny --trace keys.jsonl", USAGE, "keys.jsonl:1"),
    ("trace stats binary.jsonl", USAGE, "binary.jsonl:1"),
    ("trace stats words.jsonl", USAGE, "words.jsonl:1: 'hello': not a known trace"),
    ("calibrate tiny unknown.json", USAGE, "unknown.json: not a known result file: allowed are those of AIPerf"),
    ("calibrate tiny broken.json", USAGE, "broken.json:1: not JSON"),
    ("calibrate tiny absent.json", USAGE, "absent.json: cannot be read"),
    ("calibrate tiny unknown.json --out file", USAGE, "--out: file: file is not a directory that can be written"),
    ("validate --set columns.csv", USAGE, "columns.csv: no column id, model"),
    # runs, storages and places to write to
    ("show last", USAGE, "there is no run under runs yet"),
    ("show nothing", USAGE, "nothing: no such run under runs"),
    ("show last --runs-dir file", USAGE, "--runs-dir: file: not a directory"),
    ("track sync nothing", USAGE, "nothing: no such run under runs"),
    ("optimize tiny --runs-dir file/runs", USAGE, "--runs-dir: file/runs"),
    ("serve --runs-dir file", USAGE, "--runs-dir: file: file is not a directory that can be written"),
    ("predict tiny --capture-requests folder", USAGE, "--capture-requests: folder: allowed: a file"),
    ("predict tiny --capture-requests absent/x.parquet", USAGE, "--capture-requests: absent/x.parquet"),
    ("optimize tiny --storage trials", USAGE, "storage: trials: cannot be opened"),
    ("optimize tiny --storage nosql://x", USAGE, "storage: nosql://x: cannot be opened"),
    ("optimize tiny --storage sqlite:////nowhere/at/all.db", USAGE, "all.db: cannot be opened"),
    ("optimize tiny --storage postgresql://localhost:port/trials", USAGE, "storage: postgresql://localhost:port/trials"),
    # what no hardware does
    ("predict tiny --set deployment.model=llama-3.1-70b", NOTHING_FEASIBLE, "does not fit on 1 x h100_sxm"),
    ("launch tiny --set deployment.model=llama-3.1-70b", NOTHING_FEASIBLE, "does not fit on 1 x h100_sxm"),
    ("predict tiny --set deployment.aggregated.tensor_parallel_size=3", NOTHING_FEASIBLE, "does not divide the 32"),
    ("predict tiny --set deployment.timing='{type: pack}' --set deployment.gpu=mi300x", USAGE, "no timing pack"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _folder_of_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty directory but for FILES, which must be all that is there afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNOSIM_TRACKING", "off")
    monkeypatch.delenv("DYNOSIM_API_KEY", raising=False)
    Path("folder").mkdir()
    for name, content in FILES.items():
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    yield
    assert {str(path) for path in Path().rglob("*")} == {"folder", *FILES}


@pytest.mark.parametrize(("line", "code", "words"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_a_mistake_is_one_line(line: str, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(shlex.split(line)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    *said, error = captured.err.splitlines()
    assert error.startswith("dynosim: ")
    assert words in error
    assert [one for one in said if " -> " not in one] == []  # what an alias resolved to may come before


@pytest.mark.parametrize("verb", ["serve", "track ui"])
def test_a_taken_port_is_one_line(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DYNOSIM_TRACKING")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main([*verb.split(), "--port", str(port)]) == USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"dynosim: --host 127.0.0.1 --port {port}: Address already in use\n"
