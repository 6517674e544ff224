"""Error of the bundled timing packs against the library they were sampled from, or the bundle made again.

    python benchmarks/timing_packs.py [PATTERN]      table of errors over random passes, e.g. 'llama-3.1-70b.*.vllm.*'
    python benchmarks/timing_packs.py --rebuild      write src/dynosim/timing/packs again; prints what has no data

Needs the extra [aic]. Decode passes: batch 1-256 (log-uniform, padded to its CUDA graph as in a pack), context 64-32k.
Prefill passes: 1-8192 new tokens behind 0-16k cached ones. The library's raw curves jump at tile edges, which packs
leave out on purpose: the median tells the interpolation error, the 95th percentile mostly those edges.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from dynosim.timing.aic import Kernels
from dynosim.timing.base import PassTables
from dynosim.timing.bundle import bundled_keys, rebuild
from dynosim.timing.pack import BUNDLED, PackKey, Size, load_pack

PASSES = 200
LIMITS = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}


def decode_errors(tables: PassTables, kernels: Kernels, rng: np.random.Generator) -> Iterator[float]:
    for _ in range(PASSES):
        batch = round(2 ** rng.uniform(0, 8))
        context = round(2 ** rng.uniform(6, 15))
        attention = np.interp(batch * context, tables.decode_context[batch], tables.decode_s[batch])
        library = sum(kernels.decode(batch, context).values()) / 1e3
        yield (tables.graph_tokens_s[batch] + attention) / library - 1


def prefill_errors(tables: PassTables, kernels: Kernels, rng: np.random.Generator) -> Iterator[float]:
    for _ in range(PASSES):
        new, cached = round(2 ** rng.uniform(0, 13)), int(rng.integers(0, 16384)) * int(rng.integers(0, 2))
        share = np.interp(new + cached, tables.prefill_seq, tables.prefill_share_s[1])
        attention = share * (1 - (cached / (new + cached)) ** 2)
        library = sum(kernels.prefill(1, new, cached).values()) / 1e3
        yield (tables.tokens_s[new] + attention) / library - 1


def _row(key: PackKey, size: Size) -> str:
    tables = load_pack(BUNDLED / key.filename).tables(size, **LIMITS)
    kernels = Kernels.compile(key, size, key.engine)
    cells = []
    for errors in (decode_errors, prefill_errors):
        error = np.array(list(errors(tables, kernels, np.random.default_rng(0))))
        cells.append(f"{error.mean():+8.2%} {np.median(abs(error)):8.2%} {np.quantile(abs(error), 0.95):8.2%}")
    return f"{key.stem:<40} {'TP' + size.label:<6} {'   '.join(cells)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--rebuild", action="store_true")
    arguments = parser.parse_args()
    if arguments.rebuild:
        for file, reason in rebuild(BUNDLED).items():
            print(f"{file}: {reason}")
        return
    chosen = {path.name for path in BUNDLED.glob(f"{arguments.pattern}.npz")}
    print(
        f"{'':<48} {'decode':<26}   prefill\n{'':<48} {'mean  median|e|  p95|e|':>26}   {'mean  median|e|  p95|e|':>26}"
    )
    for key, sizes in bundled_keys():
        for size in sizes if key.filename in chosen else ():
            if size in load_pack(BUNDLED / key.filename).sizes:
                print(_row(key, size))


if __name__ == "__main__":
    main()
