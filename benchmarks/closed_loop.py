"""The closed loop: measure a real vLLM server, calibrate on two loads, predict three others.

    python benchmarks/closed_loop.py --vllm .venv-conformance/vllm-0.32.0/bin/vllm       # `make closed-loop`
    python benchmarks/closed_loop.py --vllm ... --compute                                # passes of a real model
    python benchmarks/closed_loop.py --vllm ... --aiperf .../bin/aiperf --record FOLDER

The server is `vllm serve` with a model of random weights. HTTP, tokenising, engine process, scheduler and streaming are
its own. Its passes take a time that is known (benchmarks/conformance/timed_executor.py), or with --compute are those of
the model on one core. It is measured by `vllm bench serve`, and with --aiperf the open loops by AIPerf. Open loops
are predicted at the times when the client sent, closed ones from the configuration alone.

Prints a table and exits with 1 where a prediction is off by more than 2 % (--compute: 10 %). Needs two quiet cores;
as root it asks for real-time priority, so that others on the machine do not delay a pass.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dynosim.calibration import Calibration, Measurement, calibrate, read_measured, replay
from dynosim.config import Scenario
from dynosim.metrics import METRICS, summarize
from dynosim.simulation import simulate
from dynosim.space import SearchSpace
from dynosim.timing.calibrated import CalibratedDeployment, Profile
from dynosim.workload import load_workload

HERE = Path(__file__).parent
PORT = 8471
START_S = 600
METRIC_NAMES = ("time_to_first_token", "inter_token_latency", "output_token_throughput")
PASS_TIMES = {"type": "fixed", "prefill_ms_per_token": 0.1, "decode_ms": 25.0}
POOL = {"max_num_seqs": 32, "max_num_batched_tokens": 2048, "enable_prefix_caching": False}
CORE = {
    "name": "one-core", "memory_bytes": 4e9, "memory_bandwidth_bytes_s": 15e9, "flops": {"bf16": 0.3e12},
    "nvlink_bytes_s": 10e9, "scale_up_gpus": 1, "usd_per_hour": 0.05, "power_w": 10,
}  # fmt: skip
"""A core of a server of 2022 by its data sheet."""
MODEL = {
    "name": "tiny-llama", "layers": 6, "hidden": 768, "heads": 12, "kv_heads": 4, "head_dim": 64,
    "intermediate": 2048, "vocabulary": 8192,
}  # fmt: skip


class Load(NamedTuple):
    """One run of the load generator."""

    prompt: int
    answer: int
    requests: int
    concurrency: int | None = None
    rate_rps: float | None = None

    @property
    def name(self) -> str:
        """The load in words."""
        load = f"{self.concurrency} in flight" if self.concurrency else f"{self.rate_rps:g} req/s"
        return f"{self.prompt} + {self.answer} tokens, {load}"

    def workload(self) -> dict[str, Any]:
        """A workload section."""
        lengths = {"input_tokens": self.prompt, "output_tokens": self.answer}
        source = {name: {"type": "fixed", "tokens": tokens} for name, tokens in lengths.items()}
        load: dict[str, Any] = {"type": "poisson", "rate_rps": self.rate_rps}
        if self.concurrency:
            load = {"type": "concurrency", "concurrency": self.concurrency}
        return {"source": {"type": "synthetic", "requests": self.requests, **source}, "load": load}


TIMED = {
    "calibrate": (Load(512, 16, 20, concurrency=1), Load(256, 32, 60, rate_rps=4.0)),
    "predict": (
        Load(320, 32, 60, concurrency=6),
        Load(768, 24, 60, rate_rps=4.0),
        Load(256, 48, 64, concurrency=8),
    ),
}
COMPUTED = {
    "calibrate": (Load(256, 24, 20, concurrency=1), Load(128, 32, 60, rate_rps=3.0)),
    "predict": (
        Load(192, 24, 40, concurrency=2),
        Load(192, 32, 40, rate_rps=3.0),
        Load(96, 32, 60, concurrency=6),
    ),
}


class Server(NamedTuple):
    """A `vllm serve` that runs, and the tools that measure it."""

    folder: Path
    vllm: str
    aiperf: str | None

    @property
    def environment(self) -> dict[str, str]:
        """vLLM for CPUs is a distribution of another name, under which vLLM does not find itself."""
        return os.environ | {
            "PYTHONPATH": f"{self.folder}{os.pathsep}{HERE / 'conformance'}", "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "1",
        }  # fmt: skip

    def prepare(self) -> None:
        """Write the model and the name of the distribution."""
        python = str(Path(self.vllm).with_name("python"))
        script = "from importlib.metadata import version; print(version('vllm-cpu'))"
        version = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
        names = self.folder / f"vllm-{version}+cpu.dist-info"
        names.mkdir()
        (names / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
        subprocess.run([python, str(HERE / "conformance" / "tiny_model.py"), str(self.folder / "model")], check=True)

    @contextmanager
    def serving(self, flags: Sequence[str]) -> Iterator[None]:
        """Run the server; its output is ``server.log``."""
        command = [*_real_time(10), self.vllm, "serve", str(self.folder / "model"), "--port", str(PORT), *flags]
        with (self.folder / "server.log").open("w") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                self._wait(process)
                yield
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health")
            except OSError:
                time.sleep(0.5)
            else:
                return
        sys.exit(f"the server does not start: {(self.folder / 'server.log').read_text()[-3000:]}")

    def counters(self, name: str) -> str:
        """Write what Prometheus would read, and return where."""
        path = self.folder / f"{name}.prom"
        path.write_bytes(urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics").read())
        return str(path)

    def measure(self, load: Load, seed: int) -> str:
        """Return the result file of one run."""
        if self.aiperf and load.rate_rps:
            return self._aiperf(load, seed)
        rate = ["--max-concurrency", load.concurrency] if load.concurrency else ["--request-rate", load.rate_rps]
        path = self.folder / f"{seed}.json"
        self._run(
            [
                self.vllm, "bench", "serve", "--backend", "openai", "--endpoint", "/v1/completions",
                "--model", self.folder / "model", "--port", PORT, "--dataset-name", "random", "--ignore-eos",
                "--random-input-len", load.prompt, "--random-output-len", load.answer, "--num-prompts", load.requests,
                *rate, "--num-warmups", 4, "--seed", seed, "--save-result", "--save-detailed", "--disable-tqdm",
                "--result-filename", path,
            ],
            self.environment,
        )  # fmt: skip
        return str(path)

    def _aiperf(self, load: Load, seed: int) -> str:
        folder, model = self.folder / str(seed), self.folder / "model"
        self._run(
            [
                self.aiperf, "profile", "--model", model, "--tokenizer", model, "--url", f"http://127.0.0.1:{PORT}",
                "--endpoint-type", "completions", "--streaming", "--request-rate", load.rate_rps,
                "--request-count", load.requests, "--warmup-request-count", 4, "--isl", load.prompt,
                "--osl", load.answer, "--random-seed", seed, "--extra-inputs", "ignore_eos:true",
                "--extra-inputs", f"min_tokens:{load.answer}", "--output-artifact-dir", folder, "--ui", "none",
            ]
        )  # fmt: skip
        return str(folder / "profile_export_aiperf.json")

    def _run(self, command: Sequence[Any], environment: Mapping[str, str] | None = None) -> None:
        words = [*_real_time(10), *map(str, command)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(words)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")


def _real_time(priority: int) -> list[str]:
    allowed = os.geteuid() == 0 and shutil.which("chrt")
    return ["chrt", "-r", str(priority)] if allowed else []


def configuration(folder: Path, load: Load, *, compute: bool) -> str:
    """Write the configuration of the server under *load*, and return its path."""
    engine: dict[str, Any] = {"frontend_request_us": 1000, "async_scheduling": not compute}
    deployment: dict[str, Any] = {"model": "llama-3.1-8b", "gpu": "h100_sxm", "timing": PASS_TIMES}
    if compute:
        engine |= {"launch_overhead_us": 0}
        for name, card in (("model", MODEL), ("gpu", CORE)):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(card))
            deployment[name] = str(folder / f"{name}.yaml")
        deployment["timing"] = {"type": "roofline"}
    pool = POOL | blocks(compute=compute)
    path = folder / f"{load.prompt}-{load.answer}-{load.concurrency or load.rate_rps}.yaml"
    document = {
        "name": "server",
        "workload": load.workload(),
        "deployment": {**deployment, "engine": engine, "aggregated": pool},
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


def blocks(*, compute: bool) -> dict[str, int]:
    """Return the fields of a pool that say how large its KV cache is: kernels for CPUs want large blocks."""
    size = 128 if compute else 16
    return {"block_size": size, "num_gpu_blocks_override": 65536 // size}


def flags(*, compute: bool) -> list[str]:
    """Return what the server is started with."""
    own = ["--max-num-seqs", "32", "--max-num-batched-tokens", "2048", "--no-enable-prefix-caching"]
    own += ["--max-model-len", "4096", "--enforce-eager"]
    for name, value in blocks(compute=compute).items():
        own += [f"--{name.replace('_', '-')}", str(value)]
    if compute:
        return own
    options = json.dumps({"timing": PASS_TIMES, "async_scheduling": True})
    executor = ["--distributed-executor-backend", "timed_executor.TimedExecutor", "--additional-config", options]
    return [*own, *executor]


def predicted(config: str, measured: str, load: Load, profile: Profile) -> tuple[dict[str, float], dict[str, float]]:
    """Return metric -> value as measured, and as predicted under *profile*."""
    scenario, (run,) = SearchSpace.load(config).deployed(), read_measured(measured)
    replayed = replay(run, scenario)
    found = replayed.predict(profile) if load.rate_rps else _from_configuration(scenario, profile)
    values = {name: found.value(name) or 0.0 for name in METRIC_NAMES}
    return {name: replayed.run.metrics[name]["avg"] for name in METRIC_NAMES}, values


def _from_configuration(scenario: Scenario, profile: Profile) -> Any:
    deployment = CalibratedDeployment.of(scenario.deployment, profile)
    return summarize(
        simulate(deployment, load_workload(scenario.workload, scenario.seed), scenario.seed), {}, scenario.prices
    )


def table(rows: Sequence[tuple[str, Load, str, str]], profile: Profile) -> float:
    """Print measured beside predicted for (purpose, load, configuration, result file); return the worst error."""
    print("| load | | metric | measured | uncalibrated | calibrated |\n|---|---|---|---|---|---|")
    worst = 0.0
    for purpose, load, config, measured in rows:
        truth, before = predicted(config, measured, load, Profile(name="none"))
        _, after = predicted(config, measured, load, profile)
        for name in METRIC_NAMES:
            errors = [each[name] / truth[name] - 1.0 for each in (before, after)]
            worst = max(worst, abs(errors[1]) if purpose == "predict" else 0.0)
            shown = f"{truth[name]:.4g} {METRICS[name].unit} | {errors[0]:+.1%} | {errors[1]:+.1%}"
            print(f"| {load.name} | {purpose} | {METRICS[name].display} | {shown} |")
    return worst


def fitted(rows: Sequence[tuple[str, Load, str, str]], log: str, counters: Sequence[str]) -> Calibration:
    """Return the profile of the runs that are there to calibrate."""
    runs = [
        Measurement(config=config, measured=(measured,), server_log=log, metrics=tuple(counters[i : i + 2]))
        for i, (purpose, _, config, measured) in enumerate(rows)
        if purpose == "calibrate"
    ]
    return calibrate(runs, name="server")


def keep(folder: Path, rows: Sequence[tuple[str, Load, str, str]]) -> None:
    """Write the result files without texts, times to 10 us, as tests read them."""
    folder.mkdir(parents=True, exist_ok=True)
    for purpose, load, _, measured in rows:
        data = json.loads(Path(measured).read_text(), parse_float=lambda text: round(float(text), 5))
        data.pop("generated_texts", None)
        data |= dict.fromkeys(("model_id", "tokenizer_id"), MODEL["name"])
        recorded(folder, purpose, load).write_text(json.dumps(data) + "\n")


def recorded(folder: Path, purpose: str, load: Load) -> Path:
    """Return where the result of *load* is kept."""
    return folder / f"{purpose}-{load.prompt}-{load.answer}-{load.concurrency or 'open'}.json"


def main() -> int:
    """Measure, calibrate, predict; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, metavar="BIN", help="vLLM's command, of an environment with vllm-cpu")
    parser.add_argument("--aiperf", metavar="BIN", help="AIPerf's command: open loops are measured by it")
    parser.add_argument("--compute", action="store_true", help="passes of the model instead of known times")
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="keep the result files there")
    arguments = parser.parse_args()
    loads, limit = (COMPUTED, 0.10) if arguments.compute else (TIMED, 0.02)
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name), arguments.vllm, arguments.aiperf)
        server.prepare()
        rows, counters = [], []
        with server.serving(flags(compute=arguments.compute)):
            for purpose, group in loads.items():
                for load in group:
                    counters.append(server.counters(str(len(counters))))
                    config = configuration(server.folder, load, compute=arguments.compute)
                    rows.append((purpose, load, config, server.measure(load, seed=len(rows) + 1)))
        profile = fitted(rows, str(server.folder / "server.log"), counters).profile
        if arguments.record:
            keep(arguments.record, rows)
        worst = table(rows, profile)
    constants = {name: getattr(profile, name) for name in profile.standard_errors if name not in profile.not_determined}
    print(f"\nfitted: {constants or 'nothing'}; not determined: {', '.join(profile.not_determined)}")
    for fact in dict.fromkeys(profile.server):
        print(f"server: {fact.name} {fact.stated}, simulated {fact.simulated}")
    print(f"worst of the predicted: {worst:.1%}; allowed: {limit:.0%}")
    return int(worst > limit)


if __name__ == "__main__":
    sys.exit(main())
