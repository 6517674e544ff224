"""Forward-pass times: how long one pass of a replica takes, from measured packs or from formulas."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

from dynosim import plugins
from dynosim.config import CustomTiming, FixedTiming, PolynomialTiming, RooflineTiming
from dynosim.engines import ENGINES
from dynosim.errors import ConfigError, NoPackError, TimingError, nearest
from dynosim.hardware.gpus import get_gpu
from dynosim.hardware.models import get_model
from dynosim.hardware.plan import PoolPlan
from dynosim.timing.base import ForwardTimes, PassTables
from dynosim.timing.calibrated import calibrate, profile_of
from dynosim.timing.cuda_graphs import pad, run_batches
from dynosim.timing.effective import add_overheads, add_stage_transfers, add_write_through, verify_drafts
from dynosim.timing.fixed import FixedTimes
from dynosim.timing.pack import DEFAULT_SIZES, USER_FOLDER, PackKey, PackTimes, Size, find_pack, load_pack
from dynosim.timing.polynomial import PolynomialTimes
from dynosim.timing.roofline import RooflineTimes

__all__ = ["ForwardTimes", "PassTables", "build", "build_missing", "effective_tables", "forward_times"]


def forward_times(plan: PoolPlan) -> ForwardTimes:
    """Return the timing source of one rank of a pool; TimingError where it has no data.

    Its passes run through the whole model on one pipeline stage's GPUs, without the engine's own overheads: see
    ``effective_tables``.
    """
    timing, pool, deployment = plan.deployment.timing, plan.config, plan.deployment
    if isinstance(timing, FixedTiming):
        return FixedTimes(timing.prefill_ms_per_token / 1e3, timing.decode_ms / 1e3)
    if isinstance(timing, PolynomialTiming):
        return PolynomialTimes(plan.capacity.tokens)
    if isinstance(timing, RooflineTiming):
        return RooflineTimes(
            plan.model, plan.gpu, pool.tensor_parallel_size, pool.data_parallel_size, pool.enable_expert_parallel,
            deployment.quantization, plan.kv_dtype, timing,
        )  # fmt: skip
    if isinstance(timing, CustomTiming):
        return _custom(timing, plan)
    own = [name for name in (deployment.model, plan.gpu_name) if plugins.is_reference(name)]
    if own:
        message = f"no timing pack for {plugins.short(own[0])}: use timing type 'roofline', or {plugins.FORMS}"
        raise NoPackError(message, path="deployment.timing")
    return _pack(plan)


def pack_key(plan: PoolPlan) -> PackKey:
    """Return what the pack of a pool is made for, of the newest kernels."""
    deployment = plan.deployment
    return PackKey(
        plan.model.name, plan.gpu_name, plan.engine.name, deployment.quantization, deployment.kv_cache_dtype,
        plan.config.enable_expert_parallel, mxfp8_activations=_gives_mxfp8(plan),
    )  # fmt: skip


def _gives_mxfp8(plan: PoolPlan) -> bool:
    """Whether ``mxfp8_activations`` changes the kernels: for experts of MXFP4 on data-centre Blackwell."""
    moe, own = plan.model.moe, plan.deployment.quantization == "none"
    mxfp4 = own and moe is not None and moe.native_bytes < 1 and plan.model.mla is None
    return plan.engine.mxfp8_activations and mxfp4 and plan.gpu.architecture in ("sm100", "sm103")


def pack_size(plan: PoolPlan) -> Size:
    """Return the parallel size of a replica of a pool."""
    return Size(plan.config.tensor_parallel_size, plan.config.data_parallel_size)


def _pack(plan: PoolPlan) -> PackTimes:
    """Return the pack of the engine's version where there is one, else that of the newest kernels."""
    key, size = pack_key(plan), pack_size(plan)
    if plan.engine.version != key.version:
        with suppress(NoPackError):
            return find_pack(replace(key, version=plan.engine.version), size)
    return find_pack(key, size)


def _custom(timing: CustomTiming, plan: PoolPlan) -> ForwardTimes:
    source = plugins.load(timing.type, path="deployment.timing.type")
    made: ForwardTimes = plugins.call(
        timing.type, lambda: source(plan.deployment, plan.config, **timing.options), "deployment.timing.options"
    )
    missing = [name for name in ("tables", "knows_hardware") if not hasattr(made, name)]
    if missing:
        message = f"{plugins.short(timing.type)}: a timing source needs {', '.join(missing)}"
        raise ConfigError(message, path="deployment.timing.type")
    return made


def source_tables(plan: PoolPlan, *, max_num_seqs: int, max_num_batched_tokens: int) -> PassTables:
    """Return the bare pass times of the timing source for these limits; ConfigError where a user's are no such tables.

    Raises TimingError where the source has no data.
    """
    source, timing = forward_times(plan), plan.deployment.timing
    limits = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    if not isinstance(timing, CustomTiming):
        return source.tables(**limits)
    tables = plugins.call(timing.type, lambda: source.tables(**limits), "deployment.timing")
    if not isinstance(tables, PassTables):
        raise ConfigError(f"{plugins.short(timing.type)}: tables(...) returns a PassTables", path="deployment.timing")
    plugins.call(timing.type, lambda: tables.check_limits(**limits), "deployment.timing")
    return tables


def effective_tables(plan: PoolPlan) -> PassTables:
    """Return the pass times that the engine of one rank of a pool reads; TimingError where the source has no data.

    The source's tables with the verification of drafted tokens, the transfers between pipeline stages, the traffic of
    KV offloading, the engine's overheads and the calibration in them. A pass still goes through the whole model: with P
    stages each takes a P-th of it.
    """
    seqs = plan.config.max_num_seqs
    decode_tokens = int(run_batches(plan.graphs, seqs).max()) * plan.tokens_per_decode
    budget = plan.config.max_num_batched_tokens + decode_tokens
    tables = source_tables(plan, max_num_seqs=decode_tokens, max_num_batched_tokens=budget)
    hardware = forward_times(plan).knows_hardware
    tables = pad(verify_drafts(tables, plan, hardware=hardware), plan.graphs, seqs)
    if hardware:
        tables = add_write_through(add_stage_transfers(tables, plan), plan)
    return calibrate(add_overheads(tables, plan, hardware=hardware), profile_of(plan.deployment))


def build(
    model: str,
    gpu: str,
    engine: str,
    quantization: str = "none",
    *,
    kv_cache_dtype: str = "auto",
    expert_parallel: bool = False,
    version: str = "current",
    mxfp8_activations: bool = False,
    tensor_parallel_sizes: tuple[int, ...] = DEFAULT_SIZES,
    data_parallel_sizes: tuple[int, ...] = (1,),
    out_dir: Path = Path(USER_FOLDER),
) -> Path:
    """Make the timing pack of a configuration from measured kernel tables and return its path.

    Sizes that the file has already are kept. Raises TimingError without the extra ``[aic]``, and where the tables lack
    the configuration; ConfigError for unknown models, GPUs and engines.
    """
    if engine not in ENGINES:
        raise ConfigError(f"{engine!r}: {nearest(engine, ENGINES)}allowed: {', '.join(ENGINES)}", path="engine")
    key = PackKey(
        get_model(model).name, get_gpu(gpu).name, engine, quantization, kv_cache_dtype, expert_parallel, version,
        mxfp8_activations,
    )  # fmt: skip
    return _build(key, [Size(*size) for size in product(tensor_parallel_sizes, data_parallel_sizes)], out_dir)


def build_missing(plans: Collection[PoolPlan], out_dir: Path = Path(USER_FOLDER)) -> None:
    """Make the timing packs that *plans* need and that are not at hand; TimingError where the tables lack one."""
    missing: dict[PackKey, list[Size]] = {}
    for plan in plans:
        try:
            forward_times(plan)
        except NoPackError:
            missing.setdefault(pack_key(plan), []).append(pack_size(plan))
    for key, sizes in missing.items():
        _build(key, sizes, out_dir)


def _build(key: PackKey, sizes: Collection[Size], out_dir: Path) -> Path:
    try:
        from dynosim.timing.aic import build_pack
    except ImportError as error:
        raise TimingError("building timing packs needs the extra: pip install 'dynosim[aic]'") from error
    path, pack = out_dir / key.filename, build_pack(key, sizes)
    (load_pack(path).joined(pack) if path.is_file() else pack).save(path)
    return path
