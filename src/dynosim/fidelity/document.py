"""What a validation says: the same tables for the terminal and for ``docs/fidelity.md``, and its scatter plots.

Numbers come from ``scores`` and ``bands``. What other tools publish of themselves and what is not modelled stand here
as text with sources. Left out: a comparison on the same rows with tools that were not run on them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.config.unmodelled import UNMODELLED
from dynosim.engines import ENGINES
from dynosim.fidelity.bands import BAND_CONFIGURATIONS, BAND_COVERAGE, BAND_METRICS, IN_SIGHT
from dynosim.fidelity.effects import Requests
from dynosim.fidelity.errors import SCORED, THROUGHPUT, TPOT, TTFT, UNSATURATED, Errors, grouped, pairs_of
from dynosim.fidelity.regret import BOUNDED, COMPARED, MIN_ALTERNATIVES, SLACK, SLO_LEVELS, Decision
from dynosim.fidelity.replay import Outcome
from dynosim.fidelity.scores import Group, Scores, Target
from dynosim.fidelity.sweeps import RANKED
from dynosim.files import write_whole
from dynosim.space.coverage import State, coverage
from dynosim.uncertainty.model_band import BANDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOTS = {TPOT: "fidelity_tpot.svg", TTFT: "fidelity_ttft.svg"}
"""Metric -> file of its scatter plot under ``docs/images``."""

TOTALS = "fidelity.json"
"""File of the totals, beside the page."""
LEFT_OUT = Path(__file__).with_name("left_out.json")
"""Written by ``benchmarks/left_out.py``."""

ERRORS_NOTE = (
    "Each cell is MAPE / median absolute error / bias (mean signed error) in percent, with the number of rows in "
    "parentheses. E2E is TTFT + (n - 1) TPOT where a row does not state it; throughput is scored only where stated."
)
BANDS_NOTE = (
    f"Measured / predicted in {100 * BAND_COVERAGE:.0f} % of the rows of a configuration that was not measured. A "
    "class of evidence is where pass times come from, the vendor, dense or MoE, disaggregated, speculative; a "
    "configuration is a source, model, GPU, engine and precision of a class. Configurations weigh alike, whatever "
    "their rows, and the quantiles are of each against the others (`fidelity/bands.py`); because the rows were seen "
    f"while building, bands are {IN_SIGHT:g} times as wide, in logarithms. A metric of a class with fewer than "
    f"{BAND_CONFIGURATIONS} configurations has the band of the smallest pool around the class that has them (*). A "
    "GPU that was not measured, of a vendor and source that were, has the class's band, as wide as the table of GPUs "
    "left out says, and is marked as extrapolated; another vendor or source has none."
)
LEFT_OUT_BANDS_NOTE = (
    "How many rows of each configuration lie in the band of all others, on average over configurations, before bands "
    "are widened for what was seen; (configurations, rows)."
)
LEFT_OUT_GPUS_NOTE = (
    "The same with all configurations of a GPU left out at a time, over all classes that have enough without it; "
    "(configurations)."
)
GROUPS_NOTE = "MAPE / median absolute error / bias in percent."


@dataclass(frozen=True)
class Section:
    """A table with a title, or what to say where it has no rows."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    empty: str = "none"


# ---- tables -------------------------------------------------------------------------------------------------------


def summary(scores: Scores) -> list[Section]:
    """Return what fits a screen: targets, totals, regret, other tools, groups, rows without a prediction, and what of
    notes was not read."""
    compared = [_baselines(scores)] if scores.baselines else []
    problems = [_problems(scores), _unread(scores)]
    return [_targets(scores), _totals(scores), _regret(scores), *compared, _groups(scores), *problems]


def sections(scores: Scores, outcomes: Sequence[Outcome]) -> list[Section]:
    """Return every table."""
    return [
        _targets(scores),
        _totals(scores),
        _regret(scores),
        _baselines(scores),
        _groups(scores),
        _sweeps(scores),
        _rankings(scores),
        _effects(scores),
        _requests(scores.requests),
        _problems(scores),
        _unread(scores),
        _decisions(scores),
        *_bands(),
        rows_table(outcomes),
    ]


def _targets(scores: Scores) -> Section:
    verdicts = {True: "met", False: "missed", None: "no rows"}
    rows = [(t.name, t.bound, _value(t), verdicts[t.met]) for t in scores.targets]
    note = (
        "Aimed at on rows that nobody looked at (`dynosim validate --set FILE`). Rows that were seen while building, "
        "as those of this page, meet them more easily."
    )
    return Section("Targets", ("target", "bound", "value", ""), rows, note)


def _value(target: Target) -> str:
    if target.value is None:
        return "–"
    return f"{_percent(target.value)} %" if target.unit == "%" else f"{target.value:.3g}"


def _totals(scores: Scores) -> Section:
    groups = [*scores.totals, scores.flagged]
    rows = [totals_row(group) for group in groups if group.rows]
    return Section("Errors in total", ("rows of", "n", *SCORED.values()), rows, ERRORS_NOTE)


def totals_row(group: Group) -> tuple[str, ...]:
    """Return the name, rows and errors of a total."""
    return group.labels[0], str(group.rows), *(_full(group.errors.get(metric)) for metric in SCORED)


def _groups(scores: Scores) -> Section:
    """Return a line for each source, and below it one for each (model, GPU, engine)."""
    rows = [_group_row(group) for group in scores.groups]
    head = ("source, and its model, GPU and engine", "n", *SCORED.values())
    return Section("Errors by source, model, GPU and engine", head, rows, GROUPS_NOTE)


def _group_row(group: Group) -> tuple[str, ...]:
    source, *rest = group.labels
    name = f"· {' '.join(map(_brief, rest))}" if rest else source_name(source)
    return name, str(group.rows), *(_short(group.errors.get(metric)) for metric in SCORED)


def _brief(name: str) -> str:
    """Return a model without its owner, a GPU without its memory, an engine without what brackets add."""
    return re.sub(r"^[\w.-]+/(?=\w)|-\d+GB$| \(.*\)$", "", name)


def source_name(source: str) -> str:
    """Return the owner of a source, and what brackets say of it."""
    brackets = source.partition("(")[2].partition(")")[0].split(",")[0]
    return " ".join(source.split()[:1]).split("/")[0] + (f" ({brackets})" if brackets else "")


def _compared(outcomes: Sequence[Outcome]) -> Section:
    runs = grouped(
        (outcome.measurement for outcome in outcomes),
        lambda row: (source_name(row.source), row.load_kind.split(" (")[0]),
    )
    rows = [
        (*kind, str(len(found)), *(", ".join(dict.fromkeys(_brief(row[i]) for row in found)) for i in range(3)))
        for kind, measured in runs.items()
        for found in [[(row.model, row.gpu, row.engine) for row in measured]]
    ]
    return Section("What is compared", ("source", "load", "rows", "models", "GPUs", "engines"), rows)


def _problems(scores: Scores) -> Section:
    reasons = grouped(scores.problems, lambda name: scores.problems[name])
    rows = [(", ".join(ids[:3]) + f", {len(ids) - 3} more" * (len(ids) > 3), why) for why, ids in reasons.items()]
    empty = "every row that ran on real GPUs has a prediction"
    return Section("Rows without a prediction", ("rows", "reason"), rows, empty=empty)


def _unread(scores: Scores) -> Section:
    rows = [(phrase, str(count)) for phrase, count in scores.unread.items()]
    return Section("Unread notes", ("stated and not simulated", "rows"), rows)


def _baselines(scores: Scores) -> Section:
    rows = [
        (b.name, SCORED[b.metric], str(b.ours.rows), f"{_percent(b.theirs.mape)} %", f"{_percent(b.ours.mape)} %")
        for b in scores.baselines
    ]
    return Section(
        "Other tools on the same rows", ("tool", "metric", "rows", "MAPE of the tool", "MAPE of dynosim"), rows
    )


def _sweeps(scores: Scores) -> Section:
    head = ("sweep", "loads", *(f"tau {name}" for name in RANKED.values()), "saturates at", "predicted", "")
    rows = [
        (s.name, _loads(s.loads), *map(_tau, map(s.tau.get, RANKED)), *map(_load, (s.measured_load, s.predicted_load)),
         s.saturation if s.measured_load or s.predicted_load else "agreed")
        for s in scores.sweeps
    ]  # fmt: skip
    note = (
        "tau is Kendall's tau-b of predicted and measured values over the loads of a sweep: 1 where both are in the "
        "same order. A sweep saturates at the first load whose TTFT is over five times that of the load before and "
        "over 2 s, or where throughput grew by 5 % or less."
    )
    return Section("Sweeps over load", head, rows, note)


def _rankings(scores: Scores) -> Section:
    head = ("task", "configurations", "rows", *(f"tau {name}" for name in RANKED.values()))
    rows = [(r.name, str(r.configurations), str(r.rows), *map(_tau, map(r.tau.get, RANKED))) for r in scores.rankings]
    note = "All loads of all configurations that serve one model with the same lengths, ranked together."
    return Section("Ranking of configurations", head, rows, note)


def _effects(scores: Scores) -> Section:
    rows = [
        (e.name, e.where, _size(e.measured, e.unit), _size(e.predicted, e.unit), f"{e.ratio:.2f}",
         "within a third" if e.kept else "wrong sign" if e.ratio <= 0.0 else "right sign")
        for e in scores.effects
    ]  # fmt: skip
    return Section("Effects", ("effect", "rows", "measured", "predicted", "ratio", ""), rows)


def _size(value: float, unit: str) -> str:
    return f"{100 * value:+.1f} %" if unit == "%" else f"{value:.4g} {unit}"


def _requests(scored: Iterable[Requests]) -> Section:
    rows = [
        (r.id, str(r.rows), what, *(f"{a:.0f} / {b:.0f}" for a, b in values.values()),
         "–" if r.correlation is None or what != "TTFT" else f"{r.correlation:.2f}")
        for r in scored
        for what, values in (("TTFT", r.ttft_ms), ("E2E", r.latency_ms))
    ]  # fmt: skip
    note = "Quantiles over requests in ms, measured / predicted; r is Pearson's, of TTFT request by request."
    return Section("Per-request logs", ("row", "requests", "time", "p10", "p50", "p90", "p99", "r"), rows, note)


def _regret(scores: Scores) -> Section:
    lost = scores.regret
    picks, alternatives = lost.picks, sum(decision.alternatives for decision in lost.decisions)
    without = sum(decision.not_offered for decision in lost.decisions)
    costs = [lost.cost_regret(level) for level in (0.5, 0.95, 1.0)]
    rows = [
        ("decisions", str(len(lost.decisions))),
        ("nothing is predicted to meet the SLO", _share(len(lost.decisions) - len(picks), len(lost.decisions))),
        (f"picks that break their SLO by over {100 * SLACK:g} %", _share(sum(p.broken for p in picks), len(picks))),
        ("cost regret of the other picks: median, p95, max", ", ".join(_change(cost) for cost in costs)),
        ("alternatives without a prediction, which are not offered", _share(without, alternatives)),
        *(
            (f"pairs ranked right by {COMPARED[metric]}, {kind}", _share(pairs.right, pairs.pairs))
            for kind, of in lost.pairs.items()
            for metric, pairs in of.items()
        ),
    ]
    note = (
        "What a user loses by deciding on predictions. A decision is a model with its lengths and kind of load, and a "
        f"bound of mean TPOT or mean TTFT at the {', '.join(f'{100 * level:g}' for level in SLO_LEVELS)} % quantile of "
        "the values measured, midway between two of them; alternatives are all measured configurations under a load "
        f"each, at least {MIN_ALTERNATIVES}. The pick is the cheapest in USD per output token (price table of the "
        "cards) of those predicted to meet the bound; its regret is its measured cost over that of the cheapest "
        "measured to meet it. "
        f"Pairs are configurations at equal load whose measured values differ by over {100 * SLACK:g} %."
    )
    return Section("Regret", ("", "value"), rows, note)


def _decisions(scores: Scores) -> Section:
    rows = [
        (
            d.task,
            f"{BOUNDED[d.metric]} <= {d.bound_ms:.4g} ms",
            str(d.alternatives),
            _overshoot(d),
            _change(d.cost_regret),
        )
        for d in scores.regret.decisions
    ]
    return Section("Decisions", ("task", "SLO", "alternatives", "measured over the SLO", "cost regret"), rows)


def _overshoot(decision: Decision) -> str:
    if decision.overshoot is None:
        return "no pick"
    return f"{_change(decision.overshoot)}, broken" if decision.broken else "kept"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({_percent(part / whole)} %)" if whole else "")


def _change(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f} %"


def _bands() -> list[Section]:
    """Return the package's bands, what they hold of configurations left out, and of GPUs left out."""
    told = json.loads(BANDS.read_text())
    head = ("class", *(_title(metric) for metric in BAND_METRICS.values()))
    classes = [
        (name, *(of["bands"].get(metric) for metric in BAND_METRICS.values())) for name, of in told["classes"].items()
    ]
    gpus = {name.rsplit("/", name.count("/") - 1)[0]: of["gpus"] for name, of in told["classes"].items()}
    measured = "; ".join(f"{source}: {', '.join(names)}" for source, names in gpus.items())
    factors = [(name, *map(_factors, bands)) for name, *bands in classes]
    inside = [(name, *map(_left_out, bands)) for name, *bands in classes]
    far = [
        (
            f"{factor} times as wide{', taken' * (float(factor) == told['new_gpu'])}",
            *(_far(of.get(metric)) for metric in BAND_METRICS.values()),
        )
        for factor, of in told["gpus_left_out"].items()
    ]
    return [
        Section("Bands by class of evidence", head, factors, f"{BANDS_NOTE} Measured GPUs are, of {measured}."),
        Section("Bands of configurations left out", head, inside, LEFT_OUT_BANDS_NOTE),
        Section("Bands of GPUs left out", ("band", *head[1:]), far, LEFT_OUT_GPUS_NOTE),
    ]


def _title(metric: str) -> str:
    name, tail = metric.removesuffix(".p99"), " p99" if metric.endswith(".p99") else ""
    return {
        "inter_token_latency": "TPOT",
        "time_to_first_token": "TTFT",
        "output_token_throughput": "throughput",
        "request_latency": "E2E",
    }[name] + tail


def _factors(band: Mapping[str, Any] | None) -> str:
    return "–" if band is None else f"{band['low']:.2f} to {band['high']:.2f}{'*' if band['over'] else ''}"


def _left_out(band: Mapping[str, Any] | None) -> str:
    if band is None or band["over"]:
        return "–"
    return f"{100 * band['inside']:.0f} % ({band['configurations']}, {band['rows']})"


def _far(found: Sequence[float] | None) -> str:
    return "–" if found is None else f"{100 * found[0]:.0f} % ({found[1]})"


def rows_table(outcomes: Sequence[Outcome]) -> Section:
    """Return every row: measured / predicted."""
    metrics = [m for m in SCORED if m != UNSATURATED]
    head = ("row", "evidence", *(f"{SCORED[m]}, {'tok/s/GPU' if m == THROUGHPUT else 'ms'}" for m in metrics), "")
    return Section("Every row", head, [_row(outcome, metrics) for outcome in outcomes], "Measured / predicted.")


def _row(outcome: Outcome, metrics: Sequence[str]) -> tuple[str, ...]:
    pairs = {pair.metric: f"{pair.measured:.4g} / {pair.predicted:.4g}" for pair in pairs_of(outcome)}
    row = outcome.measurement
    remark = "no prediction" if outcome.problem else "flagged" if row.flagged else ""
    return row.id, outcome.evidence, *(pairs.get(metric, "") for metric in metrics), remark


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _full(errors: Errors | None) -> str:
    return _short(errors) + ("" if errors is None else f" ({errors.rows})")


def _short(errors: Errors | None) -> str:
    if errors is None:
        return "–"
    return f"{_percent(errors.mape)} / {_percent(errors.median)} / {100 * errors.bias:+.1f}"


def _tau(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _load(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _loads(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


# ---- the page -----------------------------------------------------------------------------------------------------

HEAD = """# How far predictions are from real GPUs

`dynosim validate --write-docs` wrote this page; its numbers are that command's. It replays {rows} measured runs of real
engines, {flagged} of which look disturbed in their source and are scored apart, in the row "flagged". Pass times are
kernel tables where there are any (evidence "tables/...") and a roofline where not; to them come a few constants per
engine, fitted to all its rows together and to none alone (see "What is fitted"). What a row leaves open is its source's
launch script or the engine's default. Every load is produced as its source did: length ranges, warm-ups, start bursts,
multi-turn conversations. Rows, logs and traces come with the package
([sources and licences](../src/dynosim/fidelity/measured/README.md)), so the command prints these numbers everywhere.

The model was made in the sight of these rows, so expect larger errors on rows that nobody looked at;
`dynosim validate --set FILE` measures them on yours.

Errors are predicted / measured - 1. MAPE is the mean of their sizes and bias the mean with sign; rows count alike.
"""

PLOTTED = """## Predicted against measured

The solid line is a perfect prediction, the dashed ones are 20 % off. Flagged rows are left out.

"""

PUBLISHED = (
    (
        "AIConfigurator",
        "TPOT MAPE 7.8 % (vLLM 11.9 %), TTFT 16.9 to 22.1 % without outliers over 1 s; disaggregated throughput 25.5 %",
        "its paper's corpus of fixed lengths and concurrencies",
        "arXiv 2601.06288, read second-hand",
    ),
    (
        "AIConfigurator, used by others",
        "TTFT MAPE about 45 % on A100 SXM; median E2E 12 %, ITL 25 %, TTFT 650 % on H100",
        "vLLM's random data set; nine runs of vLLM 0.15",
        "github.com/ai-dynamo/aiconfigurator/issues/1205; inference-sim/sim-to-real-accuracy-validation",
    ),
    (
        "Vidur",
        "latency within 9 %",
        "its paper's models on the vLLM of 2024, operators profiled on the same GPUs",
        "Agrawal et al., MLSys 2024",
    ),
    (
        "Vidur, used by others",
        "P50 off by 700 % against vLLM 0.9.1",
        "one user's deployment",
        "github.com/microsoft/vidur/issues/60",
    ),
    (
        "LLMServingSim 2",
        "mean TTFT, TPOT and latency within 3 %",
        "three replays of 300 ShareGPT requests, layers profiled on the same GPU; one of them is the row "
        "llmss-rtxpro6000-llama-3.1-8b of this page",
        "llmservingsim.ai/docs/validation",
    ),
    (
        "BLIS (inference-sim)",
        "E2E MAPE 11.8 %, TTFT 22.8 %; later: median E2E and ITL 7 to 9 %",
        "38 and 36 vLLM runs on H100, A100 and L40S, coefficients trained on such runs",
        "github.com/inference-sim/inference-sim/pull/944; llm-d blog on BLIS",
    ),
    (
        "LLM-Emu",
        "TPOT within 4.8 %, E2E 5.3 %, throughput 1.9 %, TTFT 10.4 %",
        "vLLM itself with sampled pass times, profiled on the same GPUs",
        "arXiv 2605.00616",
    ),
)
"""(tool, error that it or a user states, on what, source)."""

PUBLISHED_NOTE = (
    "Errors as published, on other rows than these, so they do not rank the tools: tools that profile the very GPU and "
    "engine version of a test start closer than one that has kernel tables of another version, or none."
)

CONSTANTS = {
    "overlap": "passes are chosen while the one before runs",
    "launch_us": "launch of a layer without a CUDA graph, at least, µs",
    "pass_us": "CPU time of a pass, µs",
    "request_us": "CPU time of a pass per request in it, µs",
    "frontend_ms": "HTTP server and tokens on their way, per request, ms",
    "frontend_request_us": "HTTP server, from one request to the next, µs",
    "serial_us": "more CPU time of a pass without overlap, µs",
    "prefill_slowdown": "passes with prompt chunks over the sum of their kernels",
    "moe_launches": "launches of an expert layer over those of a dense one",
    "mla_launches": "more launches of latent attention",
    "untuned_us": "longer latent attention of kernels that are not tuned, per layer, µs",
}
"""Field of ``engines.base.Behaviour`` -> what it is."""

CONSTANTS_NOTE = (
    "What engines add to their kernels, fitted to all rows of the engines that share a value, never to one. Each is "
    "there for one cause. Not fitted to these rows is the time from one request to the next: it is a round number, "
    "chosen in sight of a real vLLM 0.32 with known pass times ([calibration.md](calibration.md))."
)

LEFT_OUT_NOTE = (
    "Would they hold elsewhere? `benchmarks/left_out.py` fits the {constants} values that differ from nothing again, "
    "with each of {configurations} configurations (a model on a GPU with an engine) left out in turn, and predicts "
    "that one with what the others say. MAPE in percent; fits are linear in the constants. What is modelled at all was "
    "chosen in the sight of all rows, so this is a lower bound of the error on configurations that nobody looked at."
)

ONE_SOURCE_NOTE = (
    "Seen in one source each, so less sure: 85 % of the line rate and 1.5 ms per hand-off (the Mooncake rows); "
    "FlashInfer's attention on Blackwell as if every context were the longest (the multi-turn rows, whose launch "
    "script turns the usual kernels off); what kernels reach of an H20; 150 ms per hand-off of SGLang under Dynamo,"
    " and 3 s for the first prompts of SGLang's runs on AMD, both without a known cause (other rows than these); "
    "large passes that fall behind their kernels from 1,024 tokens on; a token budget of batch + ISL + 1,500 for "
    "the gap-analysis rows."
)

LIMITS = (
    "clients: HTTP and tokenising take a constant time, and a millisecond between two requests, which was seen on vLLM "
    "0.32 alone; a client's own queue is not there",
    "clocks: power caps and slow GPUs of a node",
    "versions: kernel tables are of one version per engine, a row may have run another",
    "flags that a row does not state: those of its source's public launch scripts stand in, then the engine's defaults",
    "expert imbalance: tokens are spread over experts as the tables' own benchmark spread them",
    "noise: most rows are one run; two runs of one configuration differ by up to a few percent",
)


def markdown(scores: Scores, outcomes: Sequence[Outcome]) -> str:
    """Return the page."""
    *tables, rows = sections(scores, outcomes)
    plots = "".join(f"![{SCORED[metric]}](images/{file})\n" for metric, file in PLOTS.items())
    published = Section("What other tools publish", ("tool", "error", "on", "source"), list(PUBLISHED), PUBLISHED_NOTE)
    parts = [
        HEAD.format(rows=scores.rows, flagged=scores.flagged.rows),
        *map(_table, [_compared(outcomes), *tables[:2]]),
        PLOTTED + plots,
        *map(_table, tables[2:]),
        _fitted(),
        _table(published),
        _not_modelled(),
        f"## {rows.title}\n\n<details><summary>{len(rows.rows)} rows</summary>\n\n"
        f"{_cells(rows.note, rows.head, rows.rows)}\n</details>\n",
    ]
    return "\n".join(parts)


def figures(scores: Scores) -> dict[str, dict[str, dict[str, float]]]:
    """Return class -> metric -> rows, MAPE, median and bias, which a test holds later code to."""
    return {
        group.labels[0]: {
            m: {name: round(value, 6) for name, value in asdict(e).items()} for m, e in group.errors.items()
        }
        for group in scores.totals
        if group.rows
    }


def _table(section: Section) -> str:
    title = f"## {section.title}\n\n"
    return title + (_cells(section.note, section.head, section.rows) if section.rows else _empty(section))


def _empty(section: Section) -> str:
    return "\n\n".join(filter(None, (section.note, f"{section.empty[:1].upper()}{section.empty[1:]}.\n")))


def _cells(note: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{note}\n\n{cells}\n" if note else f"{cells}\n"


def _fitted() -> str:
    """Return the constants of the engines and how predictions fare without the rows that they were fitted to."""
    rows = [
        (text, *map(_constant, values))
        for name, text in CONSTANTS.items()
        for values in [[getattr(versions["current"].behaviour, name) for versions in ENGINES.values()]]
    ]
    report = json.loads(LEFT_OUT.read_text())
    errors = [(kind, str(row.pop("rows")), *map(_percent, row.values())) for kind, row in report["errors"].items()]
    head = ("rows of", "n", "constants as they are", "fitted again to all", "configuration left out")
    return "\n".join(
        [
            _table(Section("What is fitted", ("constant", *ENGINES), rows, CONSTANTS_NOTE)),
            _cells(LEFT_OUT_NOTE.format_map(report), head, errors),
            f"{ONE_SOURCE_NOTE}\n",
        ]
    )


def _constant(value: float | bool | Mapping[str, float]) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number:g}" for name, number in value.items()) or "–"
    return f"{value:g}" if isinstance(value, float) else "yes" if value else "no"


def _not_modelled() -> str:
    off = [
        f"`{name.split('.')[1]}`: {knob.changes}"
        for name, knob in coverage().items()
        if knob.state == State.NOT_MODELLED
    ]
    settings = "; ".join(dict.fromkeys(re.split("[:;]", reason)[0] for reason in UNMODELLED.values()))
    items = "\n".join(f"- {text}" for text in (*LIMITS, *off))
    return (
        f"## What is not modelled\n\n{items}\n- what servers have settings for and dynosim has no field "
        f"([simulator.md](simulator.md) names them): {settings}\n"
    )


def write_docs(folder: Path, scores: Scores, outcomes: Sequence[Outcome]) -> Path:
    """Write ``fidelity.md``, its plots and its totals under *folder*; return the page's path."""
    for metric, name in PLOTS.items():
        write_whole(folder / "images" / name, scatter(outcomes, metric))
    write_whole(folder / TOTALS, json.dumps(figures(scores), indent=1) + "\n")
    return write_whole(folder / "fidelity.md", markdown(scores, outcomes))


# ---- plots --------------------------------------------------------------------------------------------------------


def scatter(outcomes: Sequence[Outcome], metric: str) -> bytes:
    """Return an SVG of predicted against measured values of *metric*, coloured by engine, on logarithmic axes."""
    from io import BytesIO

    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "dynosim", "font.size": 9}):
        figure = Figure(figsize=(5.2, 4.6), layout="constrained")
        _draw(figure.add_subplot(), outcomes, metric)
        file = BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _draw(axes: Axes, outcomes: Sequence[Outcome], metric: str) -> None:
    sound = sorted((o for o in outcomes if not o.measurement.flagged), key=lambda o: o.measurement.id)
    pairs = [pair for outcome in sound for pair in pairs_of(outcome) if pair.metric == metric]
    ends = sorted(value for pair in pairs for value in (pair.measured, pair.predicted))[:: max(2 * len(pairs) - 1, 1)]
    for factor, style in ((1.0, "-"), (1.2, "--"), (0.8, "--")):
        axes.plot(ends, [factor * end for end in ends], style, color="0.6", linewidth=0.8)
    for engine, rows in sorted(grouped(pairs, lambda pair: pair.outcome.measurement.engine.split()[0]).items()):
        axes.scatter([p.measured for p in rows], [p.predicted for p in rows], s=14, alpha=0.8, label=engine)
    axes.set(
        xscale="log", yscale="log", xlabel=f"measured {SCORED[metric]}, ms", ylabel=f"predicted {SCORED[metric]}, ms"
    )
    axes.set_aspect("equal", "datalim")
    axes.legend(frameon=False)
