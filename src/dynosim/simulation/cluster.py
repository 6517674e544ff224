"""The cluster: SimPy owns the clock and everything that interacts; engines run between its events.

Arrivals, clients, routing, hand-offs and links are SimPy processes. The compiled engines are advanced to the next
SimPy event, or to the first engine event that a process waits for, whichever is earlier. A router that looks at nobody
under an open loop needs no clock at all: each engine then gets its arrivals in bulk and runs through in one call.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import simpy

from dynosim import rng
from dynosim.config import DeploymentConfig
from dynosim.policies.base import PoolView, RequestView
from dynosim.policies.registry import make_router
from dynosim.simulation import engine as core
from dynosim.simulation.network import Network
from dynosim.simulation.pool import Pool
from dynosim.workload.table import Workload

FIRST_TOKEN = {"vllm": "decode", "sglang": "transfer", "trtllm": "prefill"}
"""When a disaggregated engine shows the first token. vLLM's decode replica computes the last prompt token again and
samples the first token itself (its P/D connectors drop the prefill replica's token); SGLang's sends the prefill
replica's token on arrival of the KV cache; TensorRT-LLM's orchestrator returns the context phase's token."""

Process = Generator[simpy.Event, Any, None]


class Cluster:
    """One deployment serving one workload once."""

    def __init__(self, deployment: DeploymentConfig, workload: Workload, seed: int) -> None:
        self.deployment, self.workload = deployment, workload
        self.env = simpy.Environment()
        closed = workload.concurrency is not None
        self.pools = {
            role: Pool(role, config, deployment, workload, watch=closed or role == "prefill")
            for role, config in deployment.pools().items()
        }
        self._handles = np.stack([pool.handle for pool in self.pools.values()])
        self._routers = {
            role: make_router(deployment.router.policy, deployment.router.options, rng.stream(seed, f"routing/{role}"))
            for role in self.pools
        }
        self._awaited: dict[tuple[str, int, int], simpy.Event] = {}
        self.admissible = np.logical_and.reduce([pool.fits(workload) for pool in self.pools.values()])
        self.arrival_s = workload.arrival_s.copy()
        self._input_tokens = workload.input_tokens.tolist()
        self.landed_s = np.full(len(workload), math.nan)
        if deployment.disaggregated is not None:
            self._network = self._make_network()

    def run(self) -> None:
        """Serve the whole workload."""
        if self.workload.concurrency is not None:
            self._start_clients(self.workload.concurrency)
        elif "mixed" in self.pools and not self._routers["mixed"].looks:
            return self._run_in_bulk()
        else:
            self.env.process(self._arrivals())
        while self._step():
            pass
        return None

    # ------------------------------------------------------------------------------------------------------ the clock

    def _step(self) -> bool:
        """Let the engines run up to the next SimPy event, or to the first event somebody waits for."""
        until = self.env.peek()
        if until > self.env.now:
            count, pool = core.next_event(self._handles, until)
            if count:
                self._report(list(self.pools.values())[pool], count)
                return True
        if until == math.inf:
            return False
        self.env.step()
        return True

    def _report(self, pool: Pool, count: int) -> None:
        """Tell whoever waits for the events that one pass of *pool* caused; they all have the same time."""
        events = pool.engine.events[:count].tolist()
        if events[0][0] > self.env.now:
            self.env.run(until=events[0][0])
        for time, kind, job in events:
            waiting = self._awaited.pop((pool.role, kind, job), None)
            if waiting is not None:
                waiting.succeed(time)

    def _await(self, role: str, kind: int, job: int) -> simpy.Event:
        """Return the event, with its time as value, that the engine of *role* reports *kind* for *job*."""
        event = self._awaited[role, kind, job] = self.env.event()
        return event

    # ------------------------------------------------------------------------------------------------------- requests

    def _run_in_bulk(self) -> None:
        pool = self.pools["mixed"]
        view = pool.view(0, 0.0, overlap=False)
        replica_of = np.full(len(self.workload), core.NONE, np.int64)
        for i in np.flatnonzero(self.admissible).tolist():
            replica_of[i] = self._route("mixed", i, view)
        core.submit_all(pool.handle, replica_of, self.arrival_s)
        core.advance_all(pool.handle, math.inf)

    def _arrivals(self) -> Process:
        """Open loop: every request comes at its time, whatever the cluster does."""
        for i in np.flatnonzero(self.admissible).tolist():
            time = float(self.arrival_s[i])
            if time > self.env.now:
                yield self.env.timeout(time - self.env.now)
            if "mixed" in self.pools:
                self._send("mixed", i, time)
            else:
                self.env.process(self._hand_off(i, time))

    def _start_clients(self, concurrency: int) -> None:
        queue = iter(range(len(self.workload)))
        for _ in range(concurrency):
            self.env.process(self._client(queue))

    def _client(self, queue: Iterator[int]) -> Process:
        """Closed loop: one request after the other, each sent when the last has ended."""
        time = 0.0
        for i in queue:
            self.arrival_s[i] = time
            if not self.admissible[i]:
                continue
            if "mixed" in self.pools:
                self._send("mixed", i, time)
                time = yield self._await("mixed", core.FINISHED, i)
            else:
                time = yield from self._hand_off(i, time)

    def _hand_off(self, i: int, time: float) -> Generator[simpy.Event, Any, float]:
        """One request through prefill, KV transfer and decode; returns when it ends (closed loop) or decodes."""
        prefill, decode = self.pools["prefill"], self.pools["decode"]
        source = self._send("prefill", i, time)
        prefilled = time = yield self._await("prefill", core.PREFILL_DONE, i)
        if self.workload.output_tokens[i] == 1:
            core.release(prefill.handle, i, time)
            return time
        target = self._send("decode", i, time)
        yield self._await("decode", core.RESERVED, i)
        missing = int(decode.engine.jobs[i]["input"] - decode.engine.jobs[i]["cached"])
        size = missing * prefill.capacity.bytes_per_token
        yield from self._network.transfer(("prefill", source), ("decode", target), size)
        time = self.landed_s[i] = self.env.now
        core.release(prefill.handle, i, time)
        rule, tokens = FIRST_TOKEN[self.deployment.engine.name], self._input_tokens[i]
        if rule == "decode":
            core.land(decode.handle, i, time, 0, tokens - 1, math.nan)
        else:
            core.land(decode.handle, i, time, 1, tokens, time if rule == "transfer" else prefilled)
        if self.workload.concurrency is not None:
            time = yield self._await("decode", core.FINISHED, i)
        return time

    # -------------------------------------------------------------------------------------------------------- routing

    def _route(self, role: str, i: int, view: PoolView) -> int:
        replica = self._routers[role].route(self._request(i), view)
        if not 0 <= replica < self.pools[role].config.replicas:
            policy, replicas = self.deployment.router.policy, self.pools[role].config.replicas
            raise ValueError(f"router {policy} chose replica {replica} of {replicas}")
        return replica

    def _request(self, i: int) -> RequestView:
        workload = self.workload
        return RequestView(
            number=i,
            input_tokens=self._input_tokens[i],
            session=int(workload.session[i]),
            priority=int(workload.priority[i]),
            block_hashes=workload.hash_ids[workload.hash_offsets[i] : workload.hash_offsets[i + 1]],
            hash_block_tokens=workload.hash_block_tokens,
        )

    def _send(self, role: str, i: int, time: float) -> int:
        """Route request *i* and queue it; returns the replica."""
        pool = self.pools[role]
        # Decode replicas get their KV cache over the link: only their load counts.
        replica = self._route(role, i, pool.view(i, time, overlap=role != "decode"))
        core.submit(pool.handle, replica, i, time)
        return replica

    def _make_network(self) -> Network:
        assert self.deployment.disaggregated is not None
        link = self.deployment.disaggregated.kv_transfer
        ports = {
            role: link.bandwidth_gb_s * 1e9 * pool.config.tensor_parallel_size for role, pool in self.pools.items()
        }
        return Network(self.env, ports, link.latency_us * 1e-6)
