"""MLflow's own pages over what was tracked, opened where a study is to be seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from dynosim.addresses import check_address
from dynosim.errors import StudyError
from dynosim.tracking.delivery import delivery_errors
from dynosim.tracking.store import QUIET, connect
from dynosim.tracking.views import TRIALS, view_link

if TYPE_CHECKING:
    from mlflow import MlflowClient


def latest_study(client: MlflowClient) -> tuple[str, str, str] | None:
    """Return experiment id, run id and study id of the study that started last; None where there is none."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(
        experiments, "tags.`dynosim.trial` = 'parent'", order_by=["attributes.start_time DESC"], max_results=1
    )
    if not found:
        return None
    return found[0].info.experiment_id, found[0].info.run_id, found[0].data.tags["dynosim.study_id"]


def open_ui(uri: str | None, host: str, port: int) -> int:
    """Say where the last study is to be seen at *uri*; serve the pages until Ctrl-C where *uri* is a file.

    Returns the server's exit code. Raises StudyError when tracking is off (*uri* is None) or *uri* cannot be read, and
    ConfigError where nothing can listen at *host* and *port*.
    """
    if uri is None:
        raise StudyError("tracking is switched off")
    local = uri.startswith("sqlite:")
    if local:
        check_address(host, port)
    try:
        study = latest_study(connect(uri))
    except delivery_errors() as error:
        raise StudyError(f"MLflow at {uri}: {error}") from error
    address = f"http://{host}:{port}" if local else uri.rstrip("/")
    if local:
        print(f"MLflow on {address}, Ctrl-C ends it", file=sys.stderr)
    if study is not None:
        print(f"last study: {address}/{view_link(study[0], study[2], TRIALS)}", file=sys.stderr)
    return _serve(uri, host, port) if local else 0


def _serve(uri: str, host: str, port: int) -> int:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    options = ["--host", host, "--port", str(port), "--workers", "1"]
    # In a session of its own, so that its own processes end with this one, whichever signal asks for that.
    server = subprocess.Popen([*command, *options], env={**QUIET, **os.environ}, start_new_session=True)
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return server.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    except KeyboardInterrupt:  # how people end it
        return 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()
