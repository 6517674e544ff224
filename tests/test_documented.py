"""What README.md and docs/ show works: every command and example is run as a reader would run it.

A page is one session in an empty directory, with the installed ``dynosim`` first on PATH. Its fenced blocks, in order:

- ``console``: each ``$ command`` ends without a traceback and with exit code 0, or with the one that ``$ echo $?``
  shows next. It prints the lines shown below it, in this order. Numbers, run ids, and the spaces and frames of tables
  may differ, and ``...`` stands for anything; a line that is nothing but a number, such as an exit code, is compared
  exactly.
- ``sh``: one command per line, each without a traceback and with exit code 0.
- ``python``, ``yaml``: with a title, ``# file.py`` as first line, a file that a later command of the page uses. Python
  without a title is run as a script. YAML without a title is a part of a file: laid over a small scenario, it is valid,
  and its requests are served.
- All else stands in ``NOT_RUN``, with the reason.

So that a page takes seconds, ``dynosim optimize`` runs at most ``TRIALS`` trials. Where the page asks for more, exit
code 3 (nothing feasible) is accepted and shown lines with numbers are not compared. Servers listen on free ports and
are stopped at the end of the page. Of ``make VERB`` the commands are run that ``make -n`` prints. What a reader brings,
such as measurements, lies in ``documented/PAGE``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import pytest
import yaml

from dynosim.config import DeploymentConfig, Scenario, WorkloadConfig
from dynosim.metrics import check_slo
from dynosim.simulation import simulate
from dynosim.simulation.records import COMPLETED
from dynosim.workload import load_workload

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
PROMPTS = {"console": r"^\$ ", "sh": "^"}
TRIALS = 4
STOP_S = 20.0
"""How long a command may take to end what it has started."""
SERVERS = {"dynosim serve": 8080, "dynosim track ui": 5000}
"""Commands that go on until they are stopped, and where they listen."""

NEEDS = {"curl": shutil.which("curl"), "dynosim timing build": find_spec("aiconfigurator_core")}
"""How commands begin that need what ``make test`` does not install everywhere; without it their page is skipped."""

NOT_RUN = {
    ("README", "make test"): "it runs this test",
    ("policies", "prefill_load_scale * max("): "a formula",
}
"""How commands and blocks that are not run begin, and why they are not."""

SMALL = """
name: page
deployment:
  model: llama-3.1-8b
  gpu: h100_sxm
  timing: {type: roofline}
  aggregated: {}
workload:
  source:
    type: synthetic
    requests: 60
    input_tokens: {type: uniform, min: 50, max: 2000}
    output_tokens: {type: uniform, min: 2, max: 60}
    sessions: {turns: {type: fixed, tokens: 3}}
  load: {type: poisson, rate_rps: 10}
"""
"""What YAML without a title is laid over."""


# ---- pages as steps -----------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One command, file, script or other block of a page."""

    page: str
    line: int
    kind: str
    text: str
    shown: tuple[str, ...] = ()

    @property
    def title(self) -> str | None:
        """Return the name of the file that the block is."""
        found = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", self.text)
        return found[1] if found else None

    @property
    def searches_with_code(self) -> bool:
        """Tell whether it is a search that worker processes do with code of the reader, or the README's."""
        if self.kind == "python":
            return bool(re.search(r"(?<!study\.)\b(optimize|run_study)\(", self.text))
        return self.kind == "command" and bool(re.search(r"optimize .*(\.py|llama70b)", self.text))

    @property
    def listed(self) -> tuple[str, str] | None:
        """Return its key in ``NOT_RUN``."""
        return next((key for key in NOT_RUN if self.page == key[0] and self.text.startswith(key[1])), None)


def _steps(page: str) -> Iterator[Step]:
    for block in re.finditer(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL):
        line = PAGES[page].count("\n", 0, block.start()) + 2
        if block[1] in PROMPTS:
            yield from _commands(Step(page, line, "command", block[2]), PROMPTS[block[1]])
        else:
            yield Step(page, line, block[1], block[2])


def _commands(block: Step, prompt: str) -> Iterator[Step]:
    command, shown = rf"{prompt}((?:.*\\\n)*.*)\n", rf"((?:(?!{prompt}).*\n)*)"
    for found in re.finditer(command + shown, block.text, re.MULTILINE):
        line = block.line + block.text.count("\n", 0, found.start())
        yield block._replace(line=line, text=found[1], shown=tuple(found[2].splitlines()))


STEPS = {page: list(_steps(page)) for page in PAGES}
ALL = [step for steps in STEPS.values() for step in steps]
SEARCHES = [step for step in ALL if step.searches_with_code]
PARTS = [step for step in ALL if step.kind == "yaml" and not step.title]


# ---- a session ----------------------------------------------------------------------------------------------------


class Session:
    """A reader with *workers* processes, in *folder*, an empty directory."""

    def __init__(self, folder: Path, workers: int, servers: ExitStack) -> None:
        self._folder, self._servers, self._code = folder, servers, 0
        own = {name: value for name, value in os.environ.items() if not name.startswith(("DYNOSIM_", "MLFLOW_"))}
        self._environment = {**own, "PATH": f"{BIN}:{os.environ['PATH']}", "DYNOSIM_WORKERS": str(workers)}
        self._ports = {port: _free_port() for port in SERVERS.values()}

    def take(self, step: Step, *, fails: bool) -> None:
        """Write, run or start what the step says; *fails* if the page goes on to show an exit code."""
        text = self._local(step.text)
        if step.title:
            (self._folder / step.title).write_text(text, encoding="utf-8")
        elif step.kind == "python":
            (self._folder / "example.py").write_text(text, encoding="utf-8")
            self._run(step, "python example.py", fails=False)
        elif any(server in _of_make(text) for server in SERVERS):
            self._servers.enter_context(self._server(step, _of_make(text)))
        else:
            self._run(step, _of_make(text), fails=fails)

    def _local(self, text: str) -> str:
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", str(free), text)
        return text

    def _run(self, step: Step, command: str, *, fails: bool) -> None:
        cut = _short(command)
        with self._process(f"(exit {self._code}); {cut}") as (process, output):
            self._code = process.wait()
            printed = Path(output).read_text(encoding="utf-8")
        where = f"{step.page}.md:{step.line}: {cut}\nexit code {self._code}, printed:\n{printed}"
        assert self._code == 0 or fails or (self._code == 3 and cut != command), where
        assert "Traceback" not in printed, where
        shown = [line for line in map(_plain, step.shown) if cut == command or not re.search(r"\d", line)]
        assert _missing(shown, printed) == [], where

    @contextmanager
    def _server(self, step: Step, command: str) -> Iterator[None]:
        port = self._ports[next(port for server, port in SERVERS.items() if server in command)]
        with self._process(f"{command.strip()} --port {port}") as (process, output):
            while process.poll() is None and not _listens(port):
                time.sleep(0.1)
            printed = Path(output).read_text(encoding="utf-8")
            assert process.poll() is None, f"{command}: exit code {process.returncode}\n{printed}"
            assert _missing(map(_plain, step.shown), printed) == [], printed
            yield

    @contextmanager
    def _process(self, command: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        """Start *command*; at the end stop it with all that it has started. Its output goes to a file."""
        with NamedTemporaryFile() as output:
            process = subprocess.Popen(
                ["bash", "-uo", "pipefail", "-c", command],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield process, output.name
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)  # MLflow's server has a session of its own
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _of_make(command: str) -> str:
    """Return what *command* runs if it is ``make VERB``; what needs an installation takes the one there is."""
    if not command.startswith("make "):
        return command
    done = ["-o", ".venv/.installed", "-o", ".venv/.installed-dev"]
    verb = re.split(r"\s*#", command)[0].split()[1:]
    run = ["make", "--no-print-directory", "-n", "-C", str(ROOT), *done, *verb]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout.replace(".venv/bin/", "")


def _short(command: str) -> str:
    """Return *command* with at most ``TRIALS`` trials."""
    if "--dry-run" in command:
        return command
    asked = re.search(r"--trials[ =](\d+)", command)
    if asked:
        return command.replace(asked[0], f"--trials {min(int(asked[1]), TRIALS)}")
    return re.sub(r"\bdynosim (optimize|compare-workloads)\b", rf"\g<0> --trials {TRIALS}", command)


def _plain(line: str) -> str:
    """Return *line* without what differs from run to run."""
    if line.strip().isdigit():
        return line.strip()
    line = re.sub(r"\d{8}-\d{4}-[\w.-]+?-[0-9a-f]{4}\b", "RUN", line)
    line = re.sub(r"[\s─-╿]+", " ", line)
    return re.sub(r"[-−+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "0", line).strip()


def _missing(shown: Iterable[str], printed: str) -> list[str]:
    """Return the lines of *shown* that are not *printed*, in this order."""
    rest = iter(map(_plain, printed.splitlines()))
    return [line for line in shown if line not in ("", "...") and not any(_same(line, other) for other in rest)]


def _same(shown: str, printed: str) -> bool:
    """Tell whether *printed* is *shown*, whose ``...`` stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, shown.split("..."))), printed) is not None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


# ---- tests --------------------------------------------------------------------------------------------------------


def _session(page: str, folder: Path, workers: int, steps: list[Step]) -> None:
    brought = Path(__file__).parent / "documented" / page
    if brought.is_dir():
        shutil.copytree(brought, folder, dirs_exist_ok=True)
    with ExitStack() as servers:
        session = Session(folder, workers, servers)
        for step, after in zip(steps, [*steps[1:], None], strict=True):
            session.take(step, fails=after is not None and after.text == "echo $?")


def _to_run(page: str) -> list[Step]:
    return [step for step in STEPS[page] if not step.listed and step not in PARTS]


@pytest.mark.parametrize("page", [page for page in PAGES if _to_run(page)])
def test_page_works(page: str, tmp_path: Path) -> None:
    for need, found in NEEDS.items():
        if not found and any(step.text.startswith(need) for step in STEPS[page]):
            pytest.skip(f"cannot run: {need}")
    _session(page, tmp_path, 2, _to_run(page))


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("step", SEARCHES, ids=lambda step: f"{step.page}:{step.line}")
def test_search_works_with_other_numbers_of_workers(step: Step, workers: int, tmp_path: Path) -> None:
    files = [file for file in _to_run(step.page) if file.title]
    _session(step.page, tmp_path, workers, [*files, step._replace(shown=())])


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.page}:{part.line}")
def test_part_of_a_file_is_valid_and_serves_requests(part: Step) -> None:
    more = yaml.safe_load(part.text)
    for field, model in (("workload", WorkloadConfig), ("deployment", DeploymentConfig)):
        if more.keys() <= model.model_fields.keys():
            more = {field: more}
    data = _laid_over(yaml.safe_load(SMALL), more)
    if "workloads" in more:
        del data["workload"]
    if data["deployment"].get("mode") == "disaggregated":
        del data["deployment"]["aggregated"]
    scenario = Scenario.model_validate(data)
    check_slo(scenario.slo)
    if scenario.workload.source.type != "trace":
        workload = load_workload(scenario.workload, seed=0)
        assert len(workload) > 100 or (simulate(scenario.deployment, workload).requests["status"] == COMPLETED).all()


def _laid_over(base: Any, more: Any) -> Any:
    """Return *more* with what only *base* has, mapping by mapping. A mapping with a ``type`` is complete."""
    if not isinstance(base, dict) or not isinstance(more, dict) or "type" in more:
        return more
    return {**base, **{key: _laid_over(base.get(key), value) for key, value in more.items()}}


def test_every_block_is_run_or_listed_with_a_reason() -> None:
    other = [step for step in ALL if step.kind not in ("command", "python", "yaml")]
    assert [step for step in other if not step.listed] == []
    assert NOT_RUN.keys() - {step.listed for step in ALL} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_is_used_by_a_command(page: str) -> None:
    for number, file in enumerate(STEPS[page]):
        assert not file.title or any(file.title in later.text for later in STEPS[page][number + 1 :]), (
            f"{page}.md:{file.line}: no command uses {file.title}"
        )


@pytest.mark.parametrize("page", PAGES)
def test_code_stands_in_fenced_blocks(page: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"\n\n(    .*)", prose) == []
