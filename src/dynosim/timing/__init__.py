"""Forward-pass times: how long one pass of a replica takes, from measured packs or from formulas."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from dynosim import plugins
from dynosim.config import CustomTiming, DeploymentConfig, FixedTiming, PolynomialTiming, PoolConfig, RooflineTiming
from dynosim.engines import ENGINES, behaviour
from dynosim.errors import ConfigError, NoPackError, TimingError, nearest
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.memory import kv_capacity, kv_dtype
from dynosim.hardware.models import get_model
from dynosim.timing.base import ForwardTimes, PassTables
from dynosim.timing.calibrated import calibrate, profile_of
from dynosim.timing.effective import add_overheads, add_stage_transfers, add_write_through, verify_drafts
from dynosim.timing.fixed import FixedTimes
from dynosim.timing.pack import DEFAULT_SIZES, USER_FOLDER, PackKey, Size, find_pack
from dynosim.timing.polynomial import PolynomialTimes
from dynosim.timing.roofline import RooflineTimes

__all__ = ["ForwardTimes", "PassTables", "build", "effective_tables", "forward_times", "frontend_s"]


def forward_times(deployment: DeploymentConfig, pool: PoolConfig) -> ForwardTimes:
    """Return the timing source of one rank of *pool*; TimingError where it has no data.

    Its passes run through the whole model on one pipeline stage's GPUs, without the engine's own overheads: see
    ``effective_tables``.
    """
    timing = deployment.timing
    if isinstance(timing, FixedTiming):
        return FixedTimes(timing.prefill_ms_per_token / 1e3, timing.decode_ms / 1e3)
    if isinstance(timing, PolynomialTiming):
        return PolynomialTimes(kv_capacity(deployment, pool).tokens)
    if isinstance(timing, RooflineTiming):
        return RooflineTimes(
            get_model(deployment.model), get_gpu(deployment.pool_gpu(pool)), pool.tensor_parallel_size,
            pool.data_parallel_size, deployment.quantization, kv_dtype(deployment), timing,
        )  # fmt: skip
    if isinstance(timing, CustomTiming):
        return _custom(timing, deployment, pool)
    own = [name for name in (deployment.model, deployment.pool_gpu(pool)) if plugins.is_reference(name)]
    if own:
        message = f"no timing pack for {plugins.short(own[0])}: use timing type 'roofline', or {plugins.FORMS}"
        raise NoPackError(message, path="deployment.timing")
    key = PackKey(
        get_model(deployment.model).name, deployment.pool_gpu(pool), deployment.engine.name, deployment.quantization,
        deployment.kv_cache_dtype, pool.enable_expert_parallel, deployment.engine.version,
    )  # fmt: skip
    return find_pack(key, Size(pool.tensor_parallel_size, pool.data_parallel_size))


def _custom(timing: CustomTiming, deployment: DeploymentConfig, pool: PoolConfig) -> ForwardTimes:
    source = plugins.load(timing.type, path="deployment.timing.type")
    made: ForwardTimes = plugins.call(
        timing.type, lambda: source(deployment, pool, **timing.options), "deployment.timing.options"
    )
    missing = [name for name in ("tables", "knows_hardware") if not hasattr(made, name)]
    if missing:
        message = f"{plugins.short(timing.type)}: a timing source needs {', '.join(missing)}"
        raise ConfigError(message, path="deployment.timing.type")
    return made


def source_tables(
    deployment: DeploymentConfig, pool: PoolConfig, *, max_num_seqs: int, max_num_batched_tokens: int
) -> PassTables:
    """Return the bare pass times of the timing source for these limits; ConfigError where a user's are no such tables.

    Raises TimingError where the source has no data.
    """
    source, timing = forward_times(deployment, pool), deployment.timing
    limits = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    if not isinstance(timing, CustomTiming):
        return source.tables(**limits)
    tables = plugins.call(timing.type, lambda: source.tables(**limits), "deployment.timing")
    if not isinstance(tables, PassTables):
        raise ConfigError(f"{plugins.short(timing.type)}: tables(...) returns a PassTables", path="deployment.timing")
    plugins.call(timing.type, lambda: tables.check_limits(**limits), "deployment.timing")
    return tables


def frontend_s(deployment: DeploymentConfig) -> float:
    """Return the time between a client and the engine, there and back."""
    hardware = all(forward_times(deployment, pool).knows_hardware for pool in deployment.pools().values())
    return behaviour(deployment.engine, hardware=hardware).frontend_ms * 1e-3


def effective_tables(deployment: DeploymentConfig, pool: PoolConfig) -> PassTables:
    """Return the pass times that the engine of one rank of *pool* reads; TimingError where the source has no data.

    The source's tables with the verification of drafted tokens, the transfers between pipeline stages, the traffic of
    KV offloading, the engine's overheads and the calibration in them. A pass still goes through the whole model: with P
    stages each takes a P-th of it.
    """
    drafted = deployment.engine.speculative.num_speculative_tokens if deployment.engine.speculative else 0
    decode_tokens = pool.max_num_seqs * (1 + drafted)
    tables = source_tables(
        deployment, pool, max_num_seqs=decode_tokens, max_num_batched_tokens=pool.max_num_batched_tokens + decode_tokens
    )
    hardware = forward_times(deployment, pool).knows_hardware
    tables = verify_drafts(tables, deployment, pool, hardware=hardware)
    if hardware:
        tables = add_write_through(add_stage_transfers(tables, deployment, pool), deployment, pool)
    return calibrate(add_overheads(tables, deployment, hardware=hardware), profile_of(deployment))


def build(
    model: str,
    gpu: str,
    engine: str,
    quantization: str = "none",
    *,
    kv_cache_dtype: str = "auto",
    expert_parallel: bool = False,
    version: str = "current",
    tensor_parallel_sizes: tuple[int, ...] = DEFAULT_SIZES,
    data_parallel_sizes: tuple[int, ...] = (1,),
    out_dir: Path = Path(USER_FOLDER),
) -> Path:
    """Make the timing pack of a configuration from measured kernel tables and return its path.

    Raises TimingError without the extra ``[aic]``, and where the tables lack the configuration; ConfigError for unknown
    models, GPUs and engines.
    """
    if engine not in ENGINES:
        raise ConfigError(f"{engine!r}: {nearest(engine, ENGINES)}allowed: {', '.join(ENGINES)}", path="engine")
    key = PackKey(
        get_model(model).name, get_gpu(gpu).name, engine, quantization, kv_cache_dtype, expert_parallel, version
    )
    try:
        from dynosim.timing.aic import build_pack
    except ImportError as error:
        raise TimingError("building timing packs needs the extra: pip install 'dynosim[aic]'") from error
    path = out_dir / key.filename
    build_pack(key, [Size(*size) for size in product(tensor_parallel_sizes, data_parallel_sizes)]).save(path)
    return path
