"""The offline page in a real browser: what it says at any position of its sliders, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import html as markup
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import dom, needs_chromium
from dynosim.config import PriceConfig
from dynosim.report import html
from dynosim.report.analysis import folded, number, tradeoff
from dynosim.search.study import Study
from dynosim.search.trial import Trial
from report.fake_study import OBJECTIVES, evaluate, make_study

pytestmark = needs_chromium

PROBE = """
const sliders = [...document.querySelectorAll("#whatif input")];
const numbers = selector => [...document.querySelectorAll(selector)].map(item => +item.dataset.trial);
function seen() {
  return { price: state.price, bound: state.bound, max_gpus: state.maxGpus === Infinity ? null : state.maxGpus, sentence: el("tradeoff").textContent,
    cards: [...document.querySelectorAll(".card")].map(card => [card.querySelector("b").textContent, +card.dataset.trial, card.textContent]),
    rows: numbers("#frontier [data-trial]"), note: el("whatif-note").textContent, tiles: el("tiles").textContent };
}
function at(position) {
  document.querySelector("#whatif button").click();
  const inputs = [...document.querySelectorAll("#whatif input")];
  position.forEach((place, i) => { if (place !== null) { inputs[i].value = place; inputs[i].dispatchEvent(new Event("input")); } });
  return JSON.parse(JSON.stringify(seen()));
}
const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
"""


FRAME = """<iframe src="report.html" style="border: 0; width: {width}px; height: 900px"></iframe>
<script>onmessage = event => document.body.append(Object.assign(document.createElement("pre"), {{ textContent: event.data }}))</script>"""


def _run(study: Study, script: str, folder: Path, *flags: str, width: int = 1400) -> Any:
    """Return what *script*, run in the page of *study* with ``PROBE`` before it, leaves in ``answer``.

    The page is in a frame of *width* pixels, because Chromium's windows are at least 500 wide.
    """
    probe = f"<script>'use strict'; {{ let answer; {PROBE}{script}; parent.postMessage(JSON.stringify(answer), '*'); }}</script>"
    (folder / "report.html").write_text(html(study, {}, folder).replace("</body>", f"{probe}</body>"))
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width))
    found = re.search(r"<pre>(.*?)</pre>", dom(frame.as_uri(), folder / "profile", *flags), re.DOTALL)
    assert found is not None, "a script of the page has failed"
    return json.loads(markup.unescape(found.group(1)))


def _without_cost() -> Study:
    study = make_study(60)
    objectives = OBJECTIVES[1:4]
    trials = [replace(t, outcome=evaluate(t.scenario, objectives, t.number)) for t in study.trials]
    return replace(study, objectives=objectives, trials=trials)


def _again(study: Study, seen: dict[str, Any]) -> Study:
    """Return *study* evaluated again at the prices, bounds and GPU limit that the page shows: what it should say."""
    slo = {metric: {s: seen["bound"][f"{metric}.{s}"] for s in stats} for metric, stats in study.slo.items()}
    prices = PriceConfig(usd_per_gpu_hour=seen["price"])

    def again(trial: Trial) -> Trial:
        scenario = trial.scenario.model_copy(update={"slo": slo, "prices": prices})
        return replace(trial, scenario=scenario, outcome=evaluate(scenario, study.objectives, trial.number))

    few = [t for t in study.trials if seen["max_gpus"] is None or t.scenario.deployment.num_gpus() <= seen["max_gpus"]]
    return replace(study, slo=slo, trials=[again(trial) for trial in few])


@pytest.mark.parametrize(
    "study", [make_study(60), make_study(60, 2), make_study(60, 1), _without_cost()], ids=["3", "2", "1", "no cost"]
)
def test_cards_sentence_and_frontier_are_those_of_what_is_left_at_any_position(study: Study, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sliders = 2 + len([b for stats in study.slo.values() for b in stats]) + 1
    positions = [
        [None] * sliders,
        [0] * sliders,
        [1000] * sliders,
        [500] * 2 + [0] * (sliders - 2),
        [500] * (sliders - 1) + [0],
    ]
    positions += [[int(v) if rng.random() < 0.5 else None for v in rng.uniform(200, 800, sliders)] for _ in range(20)]
    answers = _run(study, f"Plotly.react = () => {{}}; answer = {json.dumps(positions)}.map(at)", tmp_path)
    assert any(not seen["cards"] for seen in answers), "no position leaves nothing"
    assert len({str(seen["cards"]) for seen in answers}) > 3
    for seen in answers:
        left = _again(study, seen)
        picks = left.picks()
        assert [(name, trial) for name, trial, _ in seen["cards"]] == [(n, t.number) for n, t in picks.items()], seen
        for (_, _, text), trial in zip(seen["cards"], picks.values(), strict=True):
            assert all(number(v) in text for v in trial.outcome.values or ())
        assert seen["rows"] == [trial.number for trial, _ in folded(left)]
        assert f"{len(left.feasible)}feasible" in re.sub(r"([a-z]+)(\d+)", r"\2\1", seen["tiles"]) or picks
        if picks:
            assert seen["sentence"] == tradeoff(left)
        else:
            _check_relaxation(study, seen)


def _check_relaxation(study: Study, seen: dict[str, Any]) -> None:
    """The bounds that the sentence names leave nothing; at the values it names, its trial is left, and is no worse."""
    said = re.fullmatch(
        r"Nothing is left: (.+) (?:leaves|together leave) no trial\. (.+) would leave trial (\d+)\.", seen["sentence"]
    )
    assert said is not None, seen["sentence"]
    relaxed = {**seen, "bound": dict(seen["bound"])}
    for text in said[2].split(" and "):
        value = float(re.findall(r"[\d,.]+", text.replace("p99", ""))[0].replace(",", ""))
        if text.startswith("at most"):
            relaxed["max_gpus"] = value
        else:
            keys = {
                "TTFT p99": "time_to_first_token.p99",
                "ITL p99": "inter_token_latency.p99",
                "SLO attained": "good_request_fraction.min",
            }
            relaxed["bound"][next(key for label, key in keys.items() if text.startswith(label))] = value
    assert not _again(study, seen).feasible
    assert int(said[3]) in [trial.number for trial in _again(study, relaxed).feasible]


def test_rows_and_cards_work_by_keyboard(tmp_path: Path) -> None:
    script = """
    answer = {};
    for (const list of ["#frontier", "#picks"]) {
      const items = [...document.querySelectorAll(`${list} [data-trial]`)], stops = items.filter(item => item.tabIndex === 0);
      stops[0].focus();
      press("Home"); press("ArrowDown");
      const walked = items.indexOf(document.activeElement);
      press("Enter");
      answer[list] = { stops: stops.length, walked, chosen: state.selected, focused: +document.activeElement.dataset.trial,
        title: el("selected-title").textContent, selected: numbers(`${list} [aria-selected=true]`) };
      press("End"); press("ArrowDown");
      answer[list].last = items.indexOf(document.activeElement) === items.length - 1;
    }"""
    for seen in _run(make_study(60), script, tmp_path).values():
        assert seen["stops"] == 1
        assert seen["walked"] == 1
        assert seen["chosen"] == seen["focused"]
        assert seen["title"].startswith(f"Trial {seen['chosen']} ")
        assert set(seen["selected"]) == {seen["chosen"]}
        assert seen["last"]


def test_a_range_on_the_parallel_axes_filters_plot_and_table_until_cleared(tmp_path: Path) -> None:
    script = """
    const grips = [...document.querySelectorAll(".grip")], box = grips[1].getBoundingClientRect();
    const send = (type, y) => document.querySelectorAll(".grip")[1].dispatchEvent(new PointerEvent(type, { clientY: y, pointerId: 1, bubbles: true }));
    Element.prototype.setPointerCapture = () => {};
    const drawn = () => [...new Set(el("scatter").data.flatMap(trace => trace.customdata || []))];
    const before = { rows: numbers("#frontier [data-trial]"), drawn: drawn() };
    send("pointerdown", box.bottom); send("pointerup", box.top + box.height / 2);
    const during = { rows: numbers("#frontier [data-trial]"), drawn: drawn(), notes: [...document.querySelectorAll(".brushed")].map(n => n.hidden ? "" : n.textContent), marks: document.querySelectorAll("rect.brush").length };
    document.querySelector(".brushed button").click();
    answer = { before, during, after: { rows: numbers("#frontier [data-trial]"), drawn: drawn() }, hidden: [...document.querySelectorAll(".brushed")].every(n => n.hidden) };"""
    study = make_study(60)
    seen = _run(study, script, tmp_path)
    ttft = {t.number: (t.outcome.values or ())[1] for t in study.feasible}
    middle = (
        (min(ttft.values()) * max(ttft.values())) ** 0.5
        if max(ttft.values()) > 20 * min(ttft.values())
        else (min(ttft.values()) + max(ttft.values())) / 2
    )
    rows = [n for n in seen["before"]["rows"] if ttft[n] <= middle]
    kept = [n for n, value in ttft.items() if value <= middle]
    assert 0 < len(rows) <= len(seen["before"]["rows"])
    assert len(kept) < len(ttft)
    assert seen["during"]["rows"] == rows
    assert set(seen["during"]["drawn"]) & set(ttft) == set(kept)
    assert seen["during"]["marks"] == 1
    assert all(note.startswith(f"{len(kept)} of {len(ttft)} feasible trials") for note in seen["during"]["notes"])
    assert seen["after"] == seen["before"]
    assert seen["hidden"]


def test_it_fits_a_phone_and_follows_the_dark_mode(tmp_path: Path) -> None:
    script = """answer = { width: innerWidth, wide: document.documentElement.scrollWidth, ground: getComputedStyle(document.body).backgroundColor,
        plot: el("scatter").layout.paper_bgcolor, panel: getComputedStyle(document.documentElement).getPropertyValue("--panel") }"""
    seen = _run(make_study(60), script, tmp_path, "--blink-settings=preferredColorScheme=0", width=400)
    assert seen["width"] == 400
    assert seen["wide"] <= 400, "the page scrolls sideways"
    assert sum(map(int, re.findall(r"\d+", seen["ground"])[:3])) < 150, "not dark"
    assert seen["plot"] == seen["panel"]
