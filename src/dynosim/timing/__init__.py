"""Forward-pass times: how long one pass of a replica takes, from measured packs or from formulas."""

from __future__ import annotations

from dynosim.config import DeploymentConfig, FixedTiming, PolynomialTiming, PoolConfig, RooflineTiming
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.memory import kv_capacity, kv_dtype
from dynosim.hardware.models import get_model
from dynosim.timing.base import ForwardTimes, PassTables
from dynosim.timing.fixed import FixedTimes
from dynosim.timing.polynomial import PolynomialTimes
from dynosim.timing.roofline import RooflineTimes

__all__ = ["ForwardTimes", "PassTables", "forward_times"]


def forward_times(deployment: DeploymentConfig, pool: PoolConfig) -> ForwardTimes:
    """Return the timing source of one replica of *pool*; TimingError where it has no data."""
    timing = deployment.timing
    if isinstance(timing, FixedTiming):
        return FixedTimes(timing.prefill_ms_per_token / 1e3, timing.decode_ms / 1e3)
    if isinstance(timing, PolynomialTiming):
        return PolynomialTimes(kv_capacity(deployment, pool).tokens)
    if isinstance(timing, RooflineTiming):
        return RooflineTimes(
            get_model(deployment.model), get_gpu(deployment.pool_gpu(pool)), pool.tensor_parallel_size,
            deployment.quantization, kv_dtype(deployment), timing,
        )  # fmt: skip
    raise NotImplementedError
