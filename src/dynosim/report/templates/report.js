// The page: text, controls, and where the data come from: embedded, or fetched again with every event of a running study.
const el = id => document.getElementById(id);
const esc = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const EXTRA = ["output_token_throughput_per_user.p50", "good_request_fraction"];
let view;  // what look() found of what is left at the what-if bar's prices and bounds
// ---- text
function table(node, heads, rows, textColumns) {
  const cls = i => textColumns.includes(heads[i]) ? ' class="text"' : "";
  node.innerHTML = `<thead><tr>${heads.map((h, i) => `<th scope="col"${cls(i)}>${h}</th>`).join("")}</tr></thead><tbody>` +
    rows.map(r => `<tr${r.attributes || ""}>${r.cells.map((c, i) => `<td${cls(i)}>${c}</td>`).join("")}</tr>`).join("") + "</tbody>";
}
function plusMinus(t, key) {
  const ends = t.intervals[key], half = ends && t.axes[key] ? 50 * (ends[1] - ends[0]) / Math.abs(t.axes[key]) : 0;
  return half < 0.05 ? "" : `±${half.toFixed(half < 0.95 ? 1 : 0)} %`;
}
function delta(axis, v, reference) {
  if (v === undefined || !reference) return "";
  const same = Math.abs(v / reference - 1) < 0.005, better = v < reference === (axis.direction === "minimize");
  return `<span class="${same ? "muted" : better ? "good" : "bad"}">${same ? "0 %" : percent(v, reference)}</span>`;
}
const noise = (t, key) => `<span class="noise">${plusMinus(t, key)}</span>`;
const factors = (t, key) => factorsOf(t, key) ? factorsOf(t, key).map(v => v.toFixed(2)).join("–") : "";
const gpuCount = t => (t.autoscaled ? "up to " : "") + t.gpus;
const gpuText = t => Object.keys(t.gpu_counts).join(" + ");
const fileOf = t => t.number === D.baseline && !t.recommendation ? "baseline" : t.recommendation && String(t.recommendation).padStart(4, "0");
const pickNames = t => Object.entries(view.picks).filter(([, pick]) => pick === t).map(([name]) => name);
const badge = text => `<span class="badge">${esc(text)}</span>`;
function differences(t) {
  const base = baseline();
  if (!base) return D.knobs.filter(k => k.path in t.point).map(k => [k.label, undefined, t.point[k.path]]);
  return D.knobs.map(k => [k.label, base.point[k.path], t.point[k.path]]).filter(([, a, b]) => b !== undefined && JSON.stringify(a) !== JSON.stringify(b));
}
function cards() {
  const base = baseline();
  const row = (t, o) => `<tr><td>${esc(o.label)}</td><td>${withUnit(value(t, o.name), o)}</td><td>${base ? delta(o, value(t, o.name), value(base, o.name)) : ""}</td></tr>`;
  el("picks").innerHTML = Object.entries(view.picks).map(([name, t]) => `<div class="card" role="option" data-trial="${t.number}"><h3><b>${esc(name)}</b>` +
    `<span>${esc(t.label)} <span class="muted">${gpuCount(t)} GPUs · trial ${t.number}</span></span></h3><table>${D.objectives.map(o => row(t, o)).join("")}</table></div>`).join("");
  choosable(el("picks"));
}
function frontierTable() {
  const columns = [...D.objectives, ...EXTRA.map(axisOf).filter(a => a && !D.objectives.some(o => o.name === a.name))];
  const said = ["trial", "file", "deployment", "engine", "precision", "router", "GPU"], heads = [...said, "GPUs", ...columns.map(a => esc(title(a))), "evidence"];
  const cells = (t, more) => [t.number, fileOf(t) || "–", esc(t.label) + pickNames(t).map(badge).join("") + more, esc(t.engine), esc(t.precision), esc(t.router), esc(t.gpu),
    gpuCount(t), ...columns.map(a => num(value(t, a.name)) + noise(t, a.name)), esc(t.evidence || "") + (t.saturated ? ", saturated" : "")];
  const line = (t, more, kind) => ({ attributes: ` data-trial="${t.number}" class="${kind}"`, cells: cells(t, more) });
  const rows = view.rows.flatMap(({ shown, variants }) => {
    const some = variants.filter(kept), open = state.open.has(shown.number) || !kept(shown);
    const more = some.length ? ` <button class="plain more" data-open="${shown.number}" aria-expanded="${open}" title="variants of this row">${open ? "−" : "+"}${some.length}</button>` : "";
    return [...kept(shown) ? [line(shown, more, "")] : [], ...open ? some.map(t => line(t, "", "variant")) : []];
  });
  table(el("frontier"), heads, rows, said);
  el("frontier").querySelectorAll("[data-open]").forEach(button => button.onclick = event => {
    event.stopPropagation();
    const number = +button.dataset.open;
    if (!state.open.delete(number)) state.open.add(number);
    frontierTable(); mark();
    el("frontier").querySelector(`[data-open="${number}"]`)?.focus();
  });
  choosable(el("frontier"));
}
// Rows and cards alike: the arrow keys, Home and End walk, Enter and Space choose; Tab stops once, at the chosen one.
function choosable(node) {
  const all = [...node.querySelectorAll("[data-trial]")];
  all.forEach((item, i) => {
    item.onclick = () => pin(+item.dataset.trial);
    item.onkeydown = event => {
      if (event.target !== item) return;
      const to = { ArrowDown: i + 1, ArrowRight: i + 1, ArrowUp: i - 1, ArrowLeft: i - 1, Home: 0, End: all.length - 1 }[event.key];
      if (event.key === "Enter" || event.key === " ") pin(+item.dataset.trial); else if (to === undefined) return;
      event.preventDefault();
      all[to]?.focus();
    };
  });
}
function mark() {
  document.querySelectorAll("[data-trial]").forEach(item => {
    const on = +item.dataset.trial === state.selected;
    item.classList.toggle("on", on);
    if (item.tagName !== "polyline") { item.setAttribute("aria-selected", on); item.tabIndex = -1; }
  });
  // One stop in each list, also where two picks are one trial.
  for (const node of [el("picks"), el("frontier")]) (node.querySelector("[data-trial].on") ?? node.querySelector("[data-trial]"))?.setAttribute("tabindex", 0);
}
function select(number) {
  state.selected = number;
  const t = trialOf(number), base = baseline(), flags = [t.evidence, t.status === "complete" && !meets(t) ? "misses a bound" : ""].filter(Boolean);
  el("selected-title").innerHTML = `Trial ${number} · ${esc(t.label)} <span class="muted">${gpuCount(t)} × ${esc(gpuText(t))}</span>${flags.map(badge).join("")}`;
  budget(t);
  el("bottleneck").textContent = t.bottleneck;
  timeline(t);
  const file = D.run_dir && fileOf(t) && `${D.run_dir}/recommendations/${fileOf(t)}.yaml`;
  const rests = t.rests_on + (Object.keys(t.model_bands).length ? "; 80 % of its measured runs gave between these multiples (real / this) of the number" : "");
  el("detail").innerHTML = `<table id="numbers"></table><p class="muted small">${esc(rests)}</p>${t.cases.length ? `<table id="cases"></table>` : ""}<table id="changes"></table>` + (file ? `<code>dynosim predict ${esc(file)}</code>` : "");
  const keys = [...new Set([...D.objectives.map(o => o.name), "output_token_throughput_per_user.p1", "good_request_fraction", "prefix_cache_hit_rate"])].filter(k => k in t.axes);
  table(el("numbers"), ["metric", "value", "real / this", "vs baseline"], keys.map(k => ({ cells: [esc(axisOf(k).label), `${withUnit(value(t, k), axisOf(k))} ${noise(t, k)}`, `<span class="whole">${factors(t, k)}</span>`, base && base !== t ? delta(axisOf(k), value(t, k), value(base, k)) : ""] })), ["metric"]);
  if (t.cases.length) table(el("cases"), ["case", ...D.objectives.map(o => esc(axisOf(o.name).label)), "misses"], t.cases.map(c => ({ cells: [esc(c.name), ...c.values.map((v, i) => withUnit(v, axisOf(D.objectives[i].name))), esc(c.missed.join(", "))] })), ["case"]);
  table(el("changes"), ["knob", "baseline", "this trial"], differences(t).map(([k, a, b]) => ({ cells: [esc(k), esc(knob(a)), esc(knob(b))] })), ["knob"]);
  mark();
}
function pin(number) { select(number); scatter(); }
function head() {
  const base = baseline(), sign = s => s.direction === "maximize" ? "≥" : "≤";
  el("title").textContent = D.space;
  el("subtitle").textContent = `${D.study}${D.state === "running" ? " · running" : ""} · SLO: ${D.slo.map(s => `${s.label} ${sign(s)} ${withUnit(s.bound, s)}`).join(", ") || "none"}${base ? ` · baseline ${base.label}; percentages compare with it` : ""}`;
  el("gap").textContent = D.gap ? `By hypervolume ${D.gap}.` : "";
  el("health").innerHTML = D.health.map(c => `<li class="${c.level}">${esc(c.text)}</li>`).join("");
  const prices = Object.entries(D.price_sources).map(([gpu, source]) => [`${gpu} price`, `${num(D.prices[gpu])} USD per GPU-hour, ${source}`]);
  el("provenance").innerHTML = [...prices, ...Object.entries(D.provenance || {})].map(([k, v]) => `<div><dt>${esc(k)}</dt><dd>${esc(v)}</dd></div>`).join("");
}
function counts() {
  const count = status => D.trials.filter(t => t.status === status).length, left = D.trials.filter(meets).length;
  const tiles = { trials: D.trials.length, feasible: left, frontier: view.front.length, infeasible: count("infeasible"), lost: count("lost"), failed: count("failed") };
  el("tiles").innerHTML = Object.entries(tiles).map(([k, v]) => `<div><dt>${k}</dt><dd>${v}</dd></div>`).join("");
  const hidden = D.trials.length - count("complete");
  el("whatif-note").textContent = (touched() ? `What if: ${left} of the stored trials remain feasible, ${view.front.length} on the frontier. ` : "What if: move a slider to re-price and re-filter the stored trials; nothing is simulated again. ") +
    (hidden ? `${hidden} trials have no point here: infeasible before simulation, ended early because an SLO was lost, or failed.` : "");
}
// ---- controls
function slider(label, low, high, get, set, text) {
  const node = document.createElement("label"), input = document.createElement("input"), out = document.createElement("output");
  const position = v => 1000 * Math.log(v / low) / Math.log(high / low), initial = get();
  Object.assign(input, { type: "range", min: 0, max: 1000, step: 1, value: position(initial) });
  const show = () => out.textContent = text(get());
  input.oninput = () => { set(Math.abs(input.value - position(initial)) < 8 ? initial : low * (high / low) ** (input.value / 1000)); show(); draw(); };
  node.append(label, input, out); show(); el("whatif").append(node);
}
function controls() {
  const option = a => `<option value="${esc(a.name)}">${esc(title(a))}</option>`, second = D.objectives[1] || D.axes[1];
  Object.assign(state, { x: D.objectives[0].name, y: second.name, color: (D.objectives[2] || axisOf("gpus") || second).name });
  for (const name of ["x", "y", "color"]) { el(name).innerHTML = D.axes.map(option).join(""); el(name).value = state[name]; el(name).onchange = () => { state[name] = el(name).value; scatter(); }; }
  document.querySelectorAll(".brushed button").forEach(button => button.onclick = () => { state.brushes.clear(); filtered(); });
  reset();
}
function reset() {
  Object.assign(state, { price: { ...D.prices }, bound: Object.fromEntries(D.slo.map(s => [s.name, s.bound])), maxGpus: Infinity });
  el("whatif").innerHTML = "";
  for (const [gpu, usd] of Object.entries(D.prices)) slider(`${gpu} price`, usd / 4, usd * 4, () => state.price[gpu], v => state.price[gpu] = v, v => `$${v.toFixed(2)}/h`);
  for (const s of D.slo.filter(s => s.bound > 0)) slider(`${s.label} ${s.direction === "maximize" ? "≥" : "≤"}`, s.bound / 8, s.unit === "ratio" ? 1 : s.bound * 8, () => state.bound[s.name], v => state.bound[s.name] = v, v => withUnit(v, s));
  const most = Math.max(2, ...D.trials.map(t => t.gpus));
  slider("at most", 1, most, () => Math.min(state.maxGpus, most), v => state.maxGpus = v >= most ? Infinity : Math.max(1, Math.round(v)), v => `${v} GPUs`);
  el("whatif").append(Object.assign(document.createElement("button"), { className: "plain", textContent: "Reset", onclick: () => { reset(); draw(); } }));
}
// ---- drawing
function filtered() {  // what the ranges kept on the parallel axes choose
  const left = D.trials.filter(meets), names = [...state.brushes.values()].map(brush => brush.label);
  const said = `${left.filter(kept).length} of ${left.length} feasible trials are in the kept range of ${names.join(", ")}; ${view.front.filter(kept).length} of ${view.front.length} on the frontier`;
  el("folded").textContent = `${new Set([...view.front, ...view.leaders]).size} points, ${view.leaders.length} of them told apart by more than noise; +: variants of a row`;
  document.querySelectorAll(".brushed").forEach(node => { node.hidden = !names.length; node.firstChild.textContent = said; });
  frontierTable(); scatter(); parallel(); mark();
}
function draw() {
  const focus = document.activeElement, [list, number] = [focus?.closest("#picks, #frontier"), focus?.dataset.trial];
  view = look();
  cards(); counts();
  el("tradeoff").textContent = tradeoff(view.leaders);
  select(state.selected);
  filtered();
  list?.querySelector(`[data-trial="${number}"]`)?.focus();
}
function show(fresh) {
  if (!fresh.trials.length) { el("title").textContent = fresh.space; el("subtitle").textContent = "waiting for the first trial"; return; }
  const first = !D;
  D = fresh;
  el("main").hidden = false;
  if (first) { readColors(); controls(); }
  for (const gpu in D.prices) state.price[gpu] ??= D.prices[gpu];
  state.selected ??= Object.values(look().picks).at(-1)?.number ?? D.baseline ?? D.trials[0].number;
  head(); draw(); hypervolume();
  if (first) el("scatter").on("plotly_click", event => { const number = event.points[0].customdata; if (number !== undefined) pin(number); });
}
function follow() {
  el("subtitle").textContent = "loading";
  // An event says that there is news; what to draw is then fetched whole, one request at a time.
  const events = new EventSource(LIVE + "/events");
  let busy = false, news = false;
  const refresh = async () => {
    news = busy;
    if (busy) return;
    busy = true;
    try {
      const fresh = await (await fetch(LIVE + "/page")).json();
      show(fresh);
      if (fresh.state !== "running") events.close();
    } finally { busy = false; }
    if (news) refresh();
  };
  for (const kind of ["study.started", "trial.completed", "study.finished"]) events.addEventListener(kind, refresh);
  refresh();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColors(); if (D) { draw(); hypervolume(); } });
addEventListener("resize", () => { if (D) parallel(); });
if (LIVE) follow(); else show(JSON.parse(el("data").textContent));
