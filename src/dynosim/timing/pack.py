"""Timing packs: measured kernel times of one (model, GPU, engine, precision), all parallel sizes in one file.

A pack holds three functions, sampled at nodes and interpolated linearly between them:

    N(tokens)        token-wise operations (GEMMs, experts, norms, all-reduces); another curve for decode-only passes,
                     which run other kernels
    C(chunks, seq)   attention of equal prefill chunks over whole sequences
    G(batch, context) attention of decodes with equal contexts

Tokens, chunks and batch are those of one attention data-parallel rank; all ranks carry the same, so the experts see as
many times the tokens.

Beyond the last node they continue on the last slope. Packs are made by ``timing.aic``; reading one needs numpy only.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynosim.errors import NoPackError, TimingError
from dynosim.timing.base import PassTables

BUNDLED = Path(__file__).parent / "packs"
USER_FOLDER = "timing_packs"
RULES = 2
"""Of how ``timing.aic`` makes a pack of kernel times, raised when it makes another: older files of users are not read.
"""
DEFAULT_SIZES = (1, 2, 4, 8)
"""Tensor-parallel sizes that a pack is built for."""
MAX_CHUNKS = 64
"""Rows of the prefill table; passes with more chunks are rare and read the last row."""

Array32 = NDArray[np.float32]
BY_SIZE = (
    "tensor_parallel_sizes", "data_parallel_sizes", "tokens_s", "expert_s", "graph_s", "prefill_s", "decode_s",
)  # fmt: skip
"""Arrays of a pack whose first axis is the parallel size."""


class Size(NamedTuple):
    """How one replica is spread over GPUs; pipeline stages leave the kernels as they are."""

    tensor_parallel: int
    data_parallel: int = 1

    @property
    def gpus(self) -> int:
        """Of each pipeline stage."""
        return self.tensor_parallel * self.data_parallel

    @property
    def label(self) -> str:
        """The size in one word."""
        return f"{self.tensor_parallel}" + (f"dp{self.data_parallel}" if self.data_parallel > 1 else "")


@dataclass(frozen=True)
class PackKey:
    """What a pack was measured for."""

    model: str
    gpu: str
    engine: str
    quantization: str = "none"
    kv_cache_dtype: str = "auto"
    expert_parallel: bool = False
    version: str = "current"
    mxfp8_activations: bool = False
    """Of experts whose engine gives them bf16 otherwise."""

    @property
    def stem(self) -> str:
        """The key in one word; defaults leave no trace in it."""
        marks = [
            self.model,
            self.gpu,
            self.engine if self.version == "current" else f"{self.engine}-{self.version}",
            self.quantization,
            *(["ep"] if self.expert_parallel else []),
            *([f"kv_{self.kv_cache_dtype}"] if self.kv_cache_dtype != "auto" else []),
            *(["mxfp8"] if self.mxfp8_activations else []),
        ]
        return ".".join(marks)

    @property
    def filename(self) -> str:
        """The file that holds the pack."""
        return f"{self.stem}.npz"

    def build_command(self, size: Size) -> str:
        """The shell command that makes the pack."""
        options = {
            "model": self.model,
            "gpu": self.gpu,
            "engine": self.engine,
            "quantization": self.quantization,
            "kv-cache-dtype": self.kv_cache_dtype,
            "engine-version": self.version,
        }
        defaults = {"quantization": "none", "kv-cache-dtype": "auto", "engine-version": "current"}
        given = [f"--{name} {value}" for name, value in options.items() if value != defaults.get(name)]
        flags = {"--enable-expert-parallel": self.expert_parallel, "--mxfp8-activations": self.mxfp8_activations}
        if size.tensor_parallel not in DEFAULT_SIZES:
            given.append(f"--tensor-parallel-size {size.tensor_parallel}")
        if size.data_parallel > 1:
            given.append(f"--data-parallel-size {size.data_parallel}")
        return " ".join(["dynosim timing build", *given, *(flag for flag, said in flags.items() if said)])


@dataclass(frozen=True, eq=False)
class Pack:
    """The content of one file. Times in seconds; the first axis of every table is the parallel size."""

    tensor_parallel_sizes: NDArray[np.int64]
    data_parallel_sizes: NDArray[np.int64]
    """Beside those; files without them are all 1."""
    tokens: Array32
    """Nodes of tokens_s: pass tokens."""
    tokens_s: Array32
    """Shape (sizes, tokens): N of passes with prefill."""
    expert_s: Array32
    """Shape (sizes, tokens): the routed experts' part of it and their exchange; files without it have zeros."""
    graph_batch: Array32
    graph_s: Array32
    """Shape (sizes, graph_batch): N of decode-only passes."""
    chunks: Array32
    sequence: Array32
    prefill_s: Array32
    """Shape (sizes, chunks, sequence): C, the whole kernel over all chunks."""
    batch: Array32
    context: Array32
    decode_s: Array32
    """Shape (sizes, batch, context): G."""
    provenance: dict[str, Any]

    @property
    def sizes(self) -> list[Size]:
        """The rows of the tables."""
        pairs = zip(self.tensor_parallel_sizes.tolist(), self.data_parallel_sizes.tolist(), strict=True)
        return [Size(*pair) for pair in pairs]

    @property
    def outdated(self) -> bool:
        """Whether it was made of kernel times by older rules than today's."""
        kernels = str(self.provenance.get("source", "")).startswith("aiconfigurator-core")
        return kernels and self.provenance.get("rules", 1) < RULES

    def joined(self, other: Pack) -> Pack:
        """Return *other* with the sizes of this pack that it lacks, as far as both were made the same way."""
        nodes = [item.name for item in fields(self) if item.name not in (*BY_SIZE, "provenance")]
        same = [np.array_equal(getattr(self, name), getattr(other, name)) for name in nodes]
        made, made_other = ({**pack.provenance, "without_data": None} for pack in (self, other))
        kept = [row for row, size in enumerate(self.sizes) if size not in other.sizes]
        if made != made_other or not all(same):
            return other
        rows = {name: np.concatenate([getattr(self, name)[kept], getattr(other, name)]) for name in BY_SIZE}
        reasons = self.provenance["without_data"] | other.provenance["without_data"]
        return replace(other, **rows, provenance=other.provenance | {"without_data": reasons})

    def save(self, path: Path) -> None:
        """Write the pack as a compressed .npz."""
        arrays = {item.name: getattr(self, item.name) for item in fields(self)}
        arrays["provenance"] = np.array(json.dumps(self.provenance))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when whole: processes that need the same pack may make it at the same time.
        part = path.with_name(f".{path.stem}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays)
        part.replace(path)

    def tables(self, size: Size, max_num_seqs: int, max_num_batched_tokens: int) -> PassTables:
        """Expand to the tables of a rank with these scheduler limits."""
        row = self.sizes.index(size)
        batches = np.arange(max_num_seqs + 1)
        chunks = np.arange(MAX_CHUNKS + 1)
        passes = interpolate(np.arange(max_num_batched_tokens + 1), self.tokens, self.tokens_s[row])
        graphs = interpolate(batches, self.graph_batch, self.graph_s[row])
        kernels = interpolate(chunks, self.chunks, self.prefill_s[row])
        passes[0] = graphs[0] = 0.0
        return PassTables(
            tokens_s=passes,
            graph_tokens_s=graphs,
            decode_context=batches[:, None] * self.context.astype(float),
            decode_s=interpolate(batches, self.batch, self.decode_s[row]),
            prefill_seq=self.sequence.astype(float),
            prefill_share_s=kernels / np.maximum(chunks, 1)[:, None],
            expert_s=self._expert_s(size, max_num_batched_tokens),
            measured_tokens=self._measured_tokens(size),
            measured_context=self.provenance["measured_context"],
            provenance=self.provenance,
        )

    def _expert_s(self, size: Size, max_num_batched_tokens: int) -> NDArray[np.float64]:
        tokens = np.arange(max_num_batched_tokens + 1)
        if size.data_parallel == 1:
            return np.zeros(len(tokens))
        return interpolate(tokens, self.tokens, self.expert_s[self.sizes.index(size)]) * (tokens > 0)

    def _measured_tokens(self, size: Size) -> int:
        """The end of the measured grid for one rank's tokens; the experts' grid counts those of all ranks."""
        tokens: int = self.provenance["measured_tokens"]
        if size.data_parallel > 1:
            tokens = min(tokens, self.provenance.get("measured_expert_tokens", tokens) // size.data_parallel)
        return tokens


@dataclass(frozen=True)
class PackTimes:
    """One parallel size of the pack in the file *path*."""

    knows_hardware: ClassVar[bool] = True

    path: Path
    size: Size

    def tables(self, *, max_num_seqs: int, max_num_batched_tokens: int) -> PassTables:
        """Return the tables; equal arguments share one object."""
        return _tables(self.path, _stamp(self.path), self.size, max_num_seqs, max_num_batched_tokens)


def find_pack(key: PackKey, size: Size) -> PackTimes:
    """Return the pack of *key* from the user's folders or the bundle, else that of the newest version of its engine;
    NoPackError with the command that makes it."""
    ranks = f" ({size.data_parallel} data-parallel ranks)" if size.data_parallel > 1 else ""
    what = f"{key.model} on {size.gpus} x {key.gpu}{ranks} with {key.engine}, quantization {key.quantization}"
    folders = (os.environ.get("DYNOSIM_TIMING_PACKS", USER_FOLDER), USER_FOLDER, BUNDLED)
    newest = replace(key, version="current")
    for own, folder in product(dict.fromkeys((key, newest)), folders):
        # A tenth of what Path takes; asked for every candidate.
        file = os.path.abspath(os.path.join(folder, own.filename))
        if not os.path.isfile(file):
            continue
        pack = load_pack(path := Path(file))
        if folder != BUNDLED and pack.outdated:
            continue
        if size in pack.sizes:
            return PackTimes(path, size)
        if reason := pack.provenance["without_data"].get(size.label):
            raise NoPackError(f"no kernel times for {what}: {reason}", path="deployment.timing")
    make = f"make one with `{newest.build_command(size)}`, if aiconfigurator-core has its kernel times"
    message = f"no timing pack for {what}: {make}, or use timing type 'roofline'"
    raise NoPackError(message, path=_culprit(key))


def _culprit(key: PackKey) -> str:
    """Return the field that no pack at hand has, as far as one alone is to blame."""
    return "deployment.timing" if any(BUNDLED.glob(f"*.{key.gpu}.*.npz")) else "deployment.gpu"


def load_pack(path: Path) -> Pack:
    """Read a pack; TimingError when the file is not one. An unchanged file gives the same object."""
    return _load(path, _stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes with the content of a file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise TimingError(f"{path}: cannot be read: {error.strerror}") from error
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=64)
def _load(path: Path, stamp: tuple[int, int]) -> Pack:
    try:
        with np.load(path) as arrays:
            values = dict(arrays)
            values.setdefault("data_parallel_sizes", np.ones_like(values["tensor_parallel_sizes"]))
            values.setdefault("expert_s", np.zeros_like(values["tokens_s"]))
            return Pack(**(values | {"provenance": json.loads(str(values["provenance"]))}))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise TimingError(f"{path}: not a timing pack: {error}") from error


@lru_cache(maxsize=128)
def _tables(
    path: Path, stamp: tuple[int, int], size: Size, max_num_seqs: int, max_num_batched_tokens: int
) -> PassTables:
    return _load(path, stamp).tables(size, max_num_seqs, max_num_batched_tokens)


def interpolate(at: ArrayLike, nodes: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """Interpolate *values* (nodes on the first axis) linearly, on the last slope beyond the end, constant before."""
    x, xs, ys = (np.asarray(array, dtype=float) for array in (at, nodes, values))
    left = np.clip(np.searchsorted(xs, x, side="right") - 1, 0, len(xs) - 2)
    weight = np.maximum((x - xs[left]) / (xs[left + 1] - xs[left]), 0.0).reshape(-1, *[1] * (ys.ndim - 1))
    values_at: NDArray[np.float64] = ys[left] * (1.0 - weight) + ys[left + 1] * weight
    return values_at
