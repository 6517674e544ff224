"""The offline page in a real browser: what it says at any slider position, by keyboard, on a phone, in the dark."""

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
from dynosim.report.analysis import folded, tradeoff
from dynosim.report.numbers import number
from dynosim.search.study import Study
from dynosim.search.trial import Trial
from report.fake_study import OBJECTIVES, evaluate, make_study

pytestmark = needs_chromium

PROBE = """
const all = selector => [...document.querySelectorAll(selector)];
const numbers = selector => all(selector).map(item => +item.dataset.trial);
const rows = () => numbers("#frontier [data-trial]");
const drawn = () => [...new Set(el("scatter").data.flatMap(trace => trace.customdata || []))];
const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
function seen() {
  const cards = all(".card").map(card => [card.querySelector("b").textContent, +card.dataset.trial, card.textContent]);
  const pairs = all("#tiles div").map(tile => [...tile.children].map(item => item.textContent));
  const tiles = Object.fromEntries(pairs.map(([name, count]) => [name, +count]));
  return { price: state.price, bound: state.bound, max_gpus: state.maxGpus === Infinity ? null : state.maxGpus,
    sentence: el("tradeoff").textContent, cards, tiles, rows: rows() };
}
function at(position) {
  document.querySelector("#whatif button").click();
  all("#whatif input").forEach((input, i) => {
    if (position[i] !== null) { input.value = position[i]; input.dispatchEvent(new Event("input")); }
  });
  return JSON.parse(JSON.stringify(seen()));
}
"""
FRAME = """<iframe src="report.html" style="border: 0; width: {width}px; height: 900px"></iframe>
<script>onmessage = event => {{ 
  const answer = document.createElement("pre");
  answer.textContent = event.data;
  document.body.append(answer);
 }}</script>"""
LABELS = {
    "Requests served": "served_request_fraction.min",
    "TTFT p99": "time_to_first_token.p99",
    "ITL p99": "inter_token_latency.p99",
    "SLO attainment": "good_request_fraction.min",
}
SLIDERS = 7
"""Two prices, four bounds, GPUs."""


def _run(study: Study, script: str, folder: Path, *flags: str, width: int = 1400) -> Any:
    """Return what *script*, run in the page of *study* with ``PROBE`` before it, leaves in ``answer``.

    The page is in a frame of *width* pixels, because Chromium's windows are at least 500 wide.
    """
    probe = f"<script>'use strict'; {{ let answer; {PROBE}{script}; parent.postMessage(JSON.stringify(answer), '*'); }}"
    (folder / "report.html").write_text(html(study, {}, folder).replace("</body>", f"{probe}</script></body>"))
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width))
    found = re.search(r"<pre>(.*?)</pre>", dom(frame.as_uri(), folder / "profile", *flags), re.DOTALL)
    assert found is not None, "a script of the page has failed"
    return json.loads(markup.unescape(found.group(1)))


def _without_cost() -> Study:
    study, objectives = make_study(60), OBJECTIVES[1:4]
    trials = [replace(t, outcome=evaluate(t.scenario, objectives, t.number)) for t in study.trials]
    return replace(study, objectives=objectives, trials=trials)


def _again(study: Study, seen: dict[str, Any]) -> Study:
    """Return *study* evaluated again at the prices, bounds and GPU limit that the page shows."""
    slo = {metric: {stat: seen["bound"][f"{metric}.{stat}"] for stat in stats} for metric, stats in study.slo.items()}
    prices = PriceConfig(usd_per_gpu_hour=seen["price"])

    def again(trial: Trial) -> Trial:
        scenario = trial.scenario.model_copy(update={"slo": slo, "prices": prices})
        return replace(trial, scenario=scenario, outcome=evaluate(scenario, study.objectives, trial.number))

    most = seen["max_gpus"] or np.inf
    few = [again(trial) for trial in study.trials if trial.scenario.deployment.num_gpus() <= most]
    return replace(study, slo=slo, trials=few)


def _positions() -> list[list[int | None]]:
    """The start, the corners of bounds and GPUs, and twenty positions of about half of the sliders."""
    rng = np.random.default_rng(1)
    corners = [[None] * SLIDERS, [0] * SLIDERS, [1000] * SLIDERS, [500, 500, 0, 0, 0, 0, None], [None] * 6 + [0]]
    drawn = rng.integers(200, 800, (20, SLIDERS))
    return [*corners, *([int(at) if rng.random() < 0.5 else None for at in row] for row in drawn)]


STUDIES = {"three": make_study(60), "two": make_study(60, 2), "one": make_study(60, 1), "no cost": _without_cost()}


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_at_any_position_the_page_says_what_is_true_of_what_is_left(study: Study, tmp_path: Path) -> None:
    answers = _run(study, f"Plotly.react = () => {{}}; answer = {json.dumps(_positions())}.map(at)", tmp_path)
    assert len({json.dumps(seen["cards"]) for seen in answers}) > 3
    assert any(not seen["cards"] for seen in answers)
    for seen in answers:
        left = _again(study, seen)
        picks = left.picks()
        assert [(name, trial) for name, trial, _ in seen["cards"]] == [(name, t.number) for name, t in picks.items()]
        for (*_, text), trial in zip(seen["cards"], picks.values(), strict=True):
            assert all(number(value) in text for value in trial.outcome.values or ())
        assert seen["rows"] == [trial.number for trial, _ in folded(left)]
        assert (seen["tiles"]["feasible"], seen["tiles"]["frontier"]) == (len(left.feasible), len(left.frontier()))
        if picks:
            assert seen["sentence"] == tradeoff(left)
        else:
            _check_relaxation(study, seen)


def _check_relaxation(study: Study, seen: dict[str, Any]) -> None:
    """The values that the sentence names, and not one of them less, leave the trial that it names."""
    pattern = r"Nothing is left: (.+) (?:leaves|together leave) no trial\. (.+) would leave trial (\d+)\."
    said = re.fullmatch(pattern, seen["sentence"])
    assert said is not None, seen["sentence"]
    steps = [_relaxed(text) for text in said[2].split(" and ")]

    def left(steps: list[dict[str, Any]]) -> list[int]:
        bounds = {key: value for step in steps for key, value in step.items() if key != "max_gpus"}
        gpus = {key: value for step in steps for key, value in step.items() if key == "max_gpus"}
        return [t.number for t in _again(study, {**seen, **gpus, "bound": {**seen["bound"], **bounds}}).feasible]

    assert int(said[3]) in left(steps)
    assert all(not left(steps[:i] + steps[i + 1 :]) for i in range(len(steps)))


def _relaxed(text: str) -> dict[str, float]:
    """Return the bound that *text* says, by its key."""
    value = float(text.removesuffix(" GPUs").removesuffix(" ms").split()[-1].replace(",", ""))
    return {next((key for label, key in LABELS.items() if text.startswith(label)), "max_gpus"): value}


def test_rows_and_cards_work_by_keyboard(tmp_path: Path) -> None:
    script = """
    answer = ["#frontier", "#picks"].map(list => {
      const items = all(`${list} [data-trial]`), stops = items.filter(item => item.tabIndex === 0).length;
      items.find(item => item.tabIndex === 0).focus();
      press("Home"); press("ArrowDown");
      const walked = items.indexOf(document.activeElement);
      press("Enter");
      const chosen = state.selected, focused = +document.activeElement.dataset.trial;
      const title = el("selected-title").textContent;
      const selected = numbers(`${list} [aria-selected=true]`);
      press("End"); press("ArrowDown");
      return { stops, walked, chosen, focused, title, selected, last: document.activeElement === items.at(-1) };
    });"""
    for seen in _run(make_study(60), script, tmp_path):
        assert (seen["stops"], seen["walked"], seen["last"]) == (1, 1, True)
        assert seen["chosen"] == seen["focused"]
        assert seen["title"].startswith(f"Trial {seen['chosen']} ")
        assert set(seen["selected"]) == {seen["chosen"]}


def test_variants_of_a_row_unfold_below_it(tmp_path: Path) -> None:
    script = """
    const folded = rows();
    const open = number => document.querySelector(`[data-open="${number}"]`).click();
    all(".more").map(button => button.dataset.open).forEach(open);
    answer = { folded, unfolded: rows(), points: [...view.leader.keys()].map(t => t.number) };"""
    seen = _run(make_study(60, 1), script, tmp_path)
    assert set(seen["folded"]) <= set(seen["unfolded"]) == set(seen["points"])


def test_a_range_on_the_parallel_axes_filters_plot_and_table_until_cleared(tmp_path: Path) -> None:
    script = """
    Element.prototype.setPointerCapture = () => {};
    const grip = all(".grip")[1], box = grip.getBoundingClientRect(), before = { rows: rows(), drawn: drawn() };
    const send = (type, clientY) => grip.dispatchEvent(new PointerEvent(type, { clientY, pointerId: 1 }));
    const notes = () => all(".brushed").filter(note => !note.hidden).map(note => note.textContent);
    send("pointerdown", box.bottom); send("pointerup", box.top + box.height / 2);
    const during = { rows: rows(), drawn: drawn(), notes: notes() };
    all(".brushed button")[0].click();
    answer = { before, during, after: { rows: rows(), drawn: drawn() }, notes: notes() };"""
    study = make_study(60)
    seen = _run(study, script, tmp_path)
    ttft = {trial.number: (trial.outcome.values or ())[1] for trial in study.feasible}
    low, high = min(ttft.values()), max(ttft.values())
    middle = (low * high) ** 0.5 if high > 20 * low else (low + high) / 2
    kept = {trial for trial, value in ttft.items() if value <= middle}
    assert 0 < len(kept) < len(ttft)
    assert set(seen["during"]["drawn"]) & set(ttft) == kept
    assert set(seen["during"]["rows"]) <= kept
    assert set(seen["before"]["rows"]) & kept <= set(seen["during"]["rows"])
    assert len(seen["during"]["notes"]) == 3
    assert all(note.startswith(f"{len(kept)} of {len(ttft)} feasible trials") for note in seen["during"]["notes"])
    assert (seen["after"], seen["notes"]) == (seen["before"], [])


def test_it_fits_a_phone_and_follows_the_dark_mode(tmp_path: Path) -> None:
    script = """
    answer = { inner: innerWidth, wide: document.documentElement.scrollWidth, plot: el("scatter").layout.paper_bgcolor,
      panel: getComputedStyle(document.documentElement).getPropertyValue("--panel"),
      ground: getComputedStyle(document.body).backgroundColor };"""
    seen = _run(make_study(60), script, tmp_path, "--blink-settings=preferredColorScheme=0", width=400)
    assert seen["wide"] <= seen["inner"] == 400
    assert seen["plot"] == seen["panel"]
    assert max(map(int, re.findall(r"\d+", seen["ground"]))) < 64


def test_the_command_names_the_runs_directory(tmp_path: Path) -> None:
    study = make_study(60)
    command = _run(study, 'answer = document.querySelector("#detail code").textContent', tmp_path)
    place = [trial.number for trial in study.recommended()].index(study.picks()["balanced"].number) + 1
    assert command == f"dynosim predict {tmp_path}/recommendations/{place:04d}.yaml"


def test_prices_have_a_source(tmp_path: Path) -> None:
    study = make_study(4)
    bundled = replace(study.space, fields={**study.space.fields, "prices": {}})
    ask = 'answer = el("provenance").textContent'
    assert "2.00 USD per GPU-hour, given in prices.usd_per_gpu_hour" in _run(study, ask, tmp_path)
    (tmp_path / "bundled").mkdir()
    assert "table neocloud: InferenceX" in _run(replace(study, space=bundled), ask, tmp_path / "bundled")
