"""Every trial as an MLflow run. The only package that knows MLflow; it listens and is never read back by the search.

A trial is first written to ``outbox/`` in the run's folder (write-ahead, one whole file each), then a background thread
delivers it. Delivery is idempotent by trial number, so a crash, a kill or an MLflow that is down costs no trial: what
was left behind is delivered by the next run of the study or by ``sync``. Left out: model registry, system metrics.
"""

from dynosim.tracking.delivery import sync
from dynosim.tracking.store import tracking_uri
from dynosim.tracking.tracker import MLflowTracker

__all__ = ["MLflowTracker", "sync", "tracking_uri"]
