"""Tasks that end their process or take too long fail alone, and no process outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from dynosim.search.workers import DIED, LATE, Workers

LIMIT_S = 5.0


def _do(task: str) -> str:
    if task == "exit":
        os._exit(0)
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "hang":
        time.sleep(3600.0)
    return f"{task} in {os.getpid()}"


def _failed(task: str, reason: str) -> str:
    return reason


def test_tasks_that_exit_are_killed_or_hang_fail_alone() -> None:
    tasks = ["a", "exit", "b", "kill", "hang", "c"]
    with Workers(_do, 2, _failed, limit_s=LIMIT_S) as workers:
        futures = [workers.submit(task) for task in tasks]
        results = dict(zip(tasks, (future.result() for future in futures), strict=True))
    late = LATE.format(LIMIT_S)
    assert [results[task] for task in ("exit", "kill", "hang")] == [DIED, DIED, late]
    assert all(results[task].startswith(f"{task} in ") for task in "abc")
    assert "optimizer.trial_timeout_s" in late


def test_one_worker_is_this_process_unless_isolated() -> None:
    done = []
    with Workers(done.append, 1, _failed) as here:
        futures = [here.submit("a"), here.submit("b")]
        assert done == []
        assert futures[1].result() is futures[1].result() is None
        assert done == ["b"]
    with Workers(_do, 1, _failed) as workers:
        assert workers.submit("a").result() == f"a in {os.getpid()}"
    with Workers(_do, 1, _failed, isolated=True) as workers:
        pid = int(workers.submit("a").result().rpartition(" ")[2])
        assert pid != os.getpid()
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


def test_leaving_ends_what_is_running() -> None:
    with Workers(_do, 1, _failed, isolated=True) as workers:
        future = workers.submit("hang")
        while not future.running():
            time.sleep(0.01)
    assert future.exception() is not None


OWNER = """
import os
from search.test_workers import _do, _failed
from dynosim.search.workers import Workers
with Workers(_do, 1, _failed, isolated=True) as workers:
    print(workers.submit("a").result(), flush=True)
    workers.submit("hang").result()
"""


def test_a_worker_ends_with_its_owner() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])}
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as owner:
        assert owner.stdout is not None
        worker = psutil.Process(int(owner.stdout.readline().split()[-1]))
        owner.kill()
    worker.wait(timeout=60.0)
