"""One pool of the deployment with all that decides about its replicas and requests."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dynosim.simulation.dispatch import Dispatcher
from dynosim.simulation.fleet import DOWN, DRAINING, OFF, SERVING, Fleet
from dynosim.simulation.pool import Pool
from dynosim.simulation.scaling import Autoscaler


@dataclass(eq=False)
class PoolRuntime:
    """A pool, its router, its replicas and, where there is one, its autoscaler."""

    pool: Pool
    dispatcher: Dispatcher
    fleet: Fleet = field(init=False)
    scaler: Autoscaler | None = None

    def __post_init__(self) -> None:
        self.fleet = Fleet(self.pool.config, self.refresh)
        self.refresh(0.0)

    def refresh(self, time: float) -> None:
        """Tell the router who serves; a crash that nobody has noticed yet changes nothing for it."""
        lost, rows_of = self.dispatcher.lost, self.dispatcher.rows_of
        down = [replica for replica in self.fleet.having(DOWN) if rows_of(replica)[0] in lost]
        self.dispatcher.serve(sorted(self.fleet.having(SERVING) + down), time)

    def requests_on(self, replica: int) -> NDArray[np.bool_]:
        """Return shape (n,): whether each request was last queued on *replica*."""
        rows, row_of = self.dispatcher.rows_of(replica), self.pool.engine.jobs["row"]
        return np.asarray((row_of >= rows[0]) & (row_of <= rows[-1]))

    def turn_off_drained(self) -> None:
        """Give up the GPUs of drained replicas as of the moment when their last request left."""
        for replica in self.fleet.having(DRAINING):
            rows = self.pool.engine.rows[self.dispatcher.rows_of(replica)]
            if not rows["outstanding"].any():
                self.fleet.move(replica, OFF, max(float(rows["left"].max()), self.fleet.since[replica]))
