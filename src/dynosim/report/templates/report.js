"use strict";
// One page, two sources of data: embedded, or fetched again with every event of a running study. The what-if bar only filters and
// re-prices what was simulated.
const INK = "#17212b", MUTED = "#62707d", GREY = "#b6c0ca", ACCENT = "#1d5fbf", WARM = "#c2470a";
const PARTS = ["#8d99a6", "#1d5fbf", "#7fb2e5", "#2f9e6e", "#c2470a", "#e0a030"];
const el = id => document.getElementById(id);
const esc = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const state = { x: null, y: null, color: null, selected: null, price: {}, bound: {}, maxGpus: Infinity, kept: null, sort: 0 };
let D;

function num(v) {
  if (v === undefined || v === null) return "–";
  const a = Math.abs(v);
  if (a && (a < 1e-3 || a >= 1e7)) return v.toExponential(2);
  const digits = a ? Math.min(Math.max(2 - Math.floor(Math.log10(a)), 0), 5) : 0;
  return v.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
const shown = unit => ["ratio", "count", "GPUs"].includes(unit) ? "" : unit;
const withUnit = (v, axis) => `${num(v)} ${shown(axis.unit)}`.trim();
const title = axis => shown(axis.unit) ? `${axis.label} (${axis.unit})` : axis.label;
const axisOf = key => D.axes.find(a => a.key === key);
const trialOf = number => D.trials.find(t => t.number === number);
const gpusOf = t => Object.values(t.gpus).reduce((a, b) => a + b, 0);
const gpuCount = t => (t.autoscaled ? "up to " : "") + gpusOf(t);
const gpuText = t => Object.keys(t.gpus).join(" + ");
function delta(axis, v, reference) {
  if (v === undefined || !reference) return "";
  const change = (v - reference) / Math.abs(reference);
  if (Math.abs(change) < 0.005) return '<span class="muted">0 %</span>';
  const better = (change < 0) === (axis.better === "lower");
  if (v > 0 && v < 0.01 * reference) return `<span class="${better ? "good" : "bad"}">${Math.round(reference / v).toLocaleString("en-US")} x lower</span>`;
  return `<span class="${better ? "good" : "bad"}">${change < 0 ? "−" : "+"}${Math.abs(100 * change).toFixed(0)} %</span>`;
}
// ---- what-if: new prices and bounds over stored trials
function value(t, key) {
  const v = t.metrics[key];
  if (v === undefined || !axisOf(key).unit.startsWith("USD")) return v;
  const cost = prices => Object.entries(t.gpus).reduce((sum, [gpu, n]) => sum + n * prices[gpu], 0);
  return v * cost(state.price) / cost(D.prices);
}
function meets(t) {
  return t.status === "complete" && gpusOf(t) <= state.maxGpus && D.slo.every(s => {
    const sign = s.better === "higher" ? -1 : 1;
    const v = s.bound * (1 + sign * (t.violations[s.key] ?? Infinity));
    return sign * (v - state.bound[s.key]) <= 1e-12 * Math.abs(v);
  });
}
function frontier() {
  const losses = t => D.objectives.map(o => (o.better === "higher" ? -1 : 1) * value(t, o.key));
  const points = D.trials.filter(meets).map(t => [t, losses(t)]);
  const atMost = (a, b) => a.every((v, i) => v <= b[i]);
  const front = points.filter(([, p], i) => !points.some(([, q], j) => i !== j && atMost(q, p) && (j < i || !atMost(p, q)))).map(([t]) => t);
  return front.sort((a, b) => value(a, D.objectives[0].key) - value(b, D.objectives[0].key));
}
const touched = () => state.maxGpus !== Infinity || D.slo.some(s => state.bound[s.key] !== s.bound) ||
  Object.keys(D.prices).some(gpu => state.price[gpu] !== D.prices[gpu]);
// ---- plots
const FONT = { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: INK };
const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
const LAYOUT = { font: FONT, paper_bgcolor: "#fff", plot_bgcolor: "#fff", hoverlabel: { align: "left", bgcolor: "#fff", font: FONT } };
function decades(low, high) {
  const steps = high / low > 1e7 ? [1] : [1, 2, 5], ticks = [];
  for (let d = Math.floor(Math.log10(low)) - 1; d <= Math.log10(high) + 1; d++) ticks.push(...steps.map(m => m * 10 ** d));
  return { tickvals: ticks, ticktext: ticks.map(v => v >= 1 ? v.toLocaleString("en-US") : String(+v.toPrecision(1))) };
}
// The first view holds what matters: feasible trials and the baseline. Saturated ones lie decades away.
function plotAxis(key, drawn) {
  const axis = axisOf(key), near = drawn.filter(t => meets(t) || t.number === D.baseline);
  const seen = (near.length ? near : drawn).map(t => value(t, key)), low = Math.min(...seen), high = Math.max(...seen);
  const log = Math.min(...drawn.map(t => value(t, key))) > 0 && high / low > 5, scale = v => log ? Math.log10(v) : v;
  const span = scale(high) - scale(low) || Math.abs(scale(high)) || 1;
  const better = `${axis.better === "higher" ? "higher" : "lower"} is better${log ? ", log scale" : ""}`;
  return { title: { text: `${title(axis)}<br><span style="font-size:11px;color:${MUTED}">${better}</span>`, standoff: 10, font: { size: 13 } },
    type: log ? "log" : "linear", range: [scale(low) - 0.12 * span, scale(high) + 0.22 * span], ...(log ? decades(Math.min(...drawn.map(t => value(t, key))), Math.max(...drawn.map(t => value(t, key)))) : {}),
    gridcolor: "#e9edf1", linecolor: "#c9d1d9", ticks: "outside", tickcolor: "#c9d1d9", zeroline: false, automargin: true, exponentformat: "none", separatethousands: true };
}
function differences(t) {
  const base = D.baseline === null ? null : trialOf(D.baseline);
  if (!base) return D.knobs.filter(k => k in t.knobs).map(k => [k, undefined, t.knobs[k]]);
  return D.knobs.map(k => [k, base.knobs[k], t.knobs[k]]).filter(([, a, b]) => b !== undefined && JSON.stringify(a) !== JSON.stringify(b));
}
// ---- how far a number may be off; both scale with what-if prices
const interval = (t, key) => { const ends = t.intervals[key], scale = value(t, key) / t.metrics[key]; return ends && ends.map(v => v * scale); };
const band = (t, key) => t.bands[key] && t.bands[key].map(factor => value(t, key) * factor);
function plusMinus(t, key) {
  const ends = t.intervals[key], half = ends && t.metrics[key] ? 50 * (ends[1] - ends[0]) / Math.abs(t.metrics[key]) : 0;
  return half < 0.05 ? "" : `±${half.toFixed(half < 0.95 ? 1 : 0)} %`;
}
const factors = (t, key) => t.bands[key] ? t.bands[key].map(v => v.toFixed(2)).join("–") : "";
const SYMBOLS = { measured: "square", calibrated: "circle", modelled: "circle", extrapolated: "triangle-up" };
const symbol = t => (SYMBOLS[t.evidence] || "circle") + (t.saturated ? "-open" : "");
const knob = v => v === undefined ? "–" : typeof v === "object" ? JSON.stringify(v) : String(v);
const tie = t => touched() || t.leader === null || t.leader === t.number ? "" : `trial ${t.leader}`;
function hover(t) {
  const lines = D.objectives.map(o => `${esc(o.label)}: <b>${withUnit(value(t, o.key), o)}</b> ${plusMinus(t, o.key)}${t.bands[o.key] ? ` · real / this ${factors(t, o.key)}` : ""}`);
  const extra = ["output_token_throughput_per_user.p50", "good_request_fraction"].filter(k => k in t.metrics && !D.objectives.some(o => o.key === k))
    .map(k => `${esc(axisOf(k).label)}: ${withUnit(t.metrics[k], axisOf(k))}`);
  const changes = t.number === D.baseline ? ["baseline"] : differences(t).slice(0, 9)
    .map(([k, a, b]) => `${esc(k)}: ${a === undefined ? "" : esc(knob(a)) + " → "}${esc(knob(b))}`);
  const flags = [t.evidence + (tie(t) ? `, not told apart from ${tie(t)}` : ""), t.served < 0.99 ? `serves only ${(100 * t.served).toFixed(0)} % of the requests` : "", t.saturated ? "saturated: backlog grew" : "", meets(t) ? "" : "misses the SLO"].filter(Boolean);
  return [`<b>trial ${t.number} · ${esc(t.label)}</b> · ${gpuCount(t)} × ${esc(gpuText(t))}`, ...lines, ...extra, ...flags, "", ...changes].join("<br>");
}
function bars(trials, key) {
  const ends = trials.map(t => [interval(t, key), value(t, key)]);
  return { type: "data", symmetric: false, array: ends.map(([e, v]) => e ? e[1] - v : 0), arrayminus: ends.map(([e, v]) => e ? v - e[0] : 0), thickness: 1, width: 0, color: "rgba(23,33,43,.35)" };
}
// A band need not hold its own point: where the model is known to be biased it lies to one side.
function modelBands(trials) {
  const along = (key, at) => trials.filter(t => t.bands[key]).flatMap(t => [...band(t, key).map(v => at(t, v)), [null, null]]);
  const points = [...along(state.x, (t, v) => [v, value(t, state.y)]), ...along(state.y, (t, v) => [value(t, state.x), v])];
  return [{ type: "scatter", mode: "lines", name: "model band (picks, pinned)", x: points.map(p => p[0]), y: points.map(p => p[1]), line: { width: 7, color: "rgba(29,95,191,.18)" }, hoverinfo: "skip" }];
}
function scatter(front) {
  const drawn = D.trials.filter(t => t.status === "complete" && value(t, state.x) !== undefined && value(t, state.y) !== undefined);
  const faded = t => state.kept && !state.kept.has(t.number);
  const trace = (name, trials, marker, more) => ({ type: "scatter", mode: "markers", name, x: trials.map(t => value(t, state.x)), y: trials.map(t => value(t, state.y)),
    customdata: trials.map(t => t.number), hovertext: trials.map(hover), hoverinfo: "text",
    marker: { opacity: trials.map(t => faded(t) ? 0.12 : 1), ...marker }, ...more });
  const onFront = new Set(front.map(t => t.number));
  const rest = drawn.filter(t => !onFront.has(t.number)), color = axisOf(state.color), shades = front.map(t => value(t, state.color));
  const logColor = Math.min(...shades) > 0 && Math.max(...shades) / Math.min(...shades) > 20;
  const scale = shades.map(v => logColor ? Math.log10(v) : v), low = Math.min(...scale), high = Math.max(...scale);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map(f => low + f * (high - low));
  const picked = Object.entries(D.picks).map(([name, n]) => [name, trialOf(n)]).filter(([, t]) => onFront.has(t.number));
  const names = new Map();
  picked.forEach(([name, t]) => names.set(t.number, [...(names.get(t.number) || []), name]));
  const stars = [...names.keys()].map(trialOf), base = drawn.filter(t => t.number === D.baseline);
  const traces = [
    trace("misses the SLO", rest.filter(t => !meets(t) && !t.saturated), { symbol: "x-thin", size: 7, line: { width: 1.4, color: "#c9a9a0" } }),
    trace("saturated", rest.filter(t => t.saturated), { symbol: "circle-open", size: 7, color: "#c9a9a0" }),
    trace("feasible, dominated", rest.filter(t => meets(t) && !t.saturated), { size: 7, color: GREY }),
    ...modelBands([...new Set([...names.keys(), state.selected])].map(trialOf).filter(t => drawn.includes(t))),
    trace("frontier", front, { symbol: front.map(symbol), size: 11, color: scale, colorscale: "Viridis", line: { width: 1, color: "#fff" },
      colorbar: { title: { text: title(color), side: "right", font: { size: 13 } }, thickness: 12, len: 0.9, outlinewidth: 0, tickvals: high > low ? ticks : [low], ticktext: (high > low ? ticks : [low]).map(v => num(logColor ? 10 ** v : v)) } }, { error_x: bars(front, state.x), error_y: bars(front, state.y) }),
    trace("baseline", base, { symbol: "diamond", size: 14, color: WARM, line: { width: 1.5, color: "#fff" } }),
    trace("picks", stars, { symbol: "star", size: 17, color: "#f2b100", line: { width: 1.2, color: INK } },
      { mode: "markers+text", text: stars.map(t => names.get(t.number).join(", ")), textposition: "top right", textfont: { ...FONT, size: 13 }, cliponaxis: false }),
  ];
  if (D.objectives.length === 2 && state.x === D.objectives[0].key && state.y === D.objectives[1].key)
    traces.splice(3, 0, { type: "scatter", mode: "lines", x: front.map(t => value(t, state.x)), y: front.map(t => value(t, state.y)), line: { shape: "hv", width: 1.5, color: ACCENT }, hoverinfo: "skip", showlegend: false });
  Plotly.react("scatter", traces.filter(t => t.x.length), { ...LAYOUT, xaxis: plotAxis(state.x, drawn), yaxis: plotAxis(state.y, drawn), hovermode: "closest",
    margin: { l: 64, r: 16, t: 12, b: 56 }, legend: { orientation: "h", y: -0.16, yanchor: "top", x: 0, itemsizing: "constant" }, uirevision: state.x + state.y }, CONFIG);
}
// Drawn as plain lines: Plotly's own parallel coordinates need WebGL and eval, which a strict server or desktop refuses.
function parallel(front) {
  const onFront = new Set(front.map(t => t.number)), rows = D.trials.filter(meets);
  const order = (a, b) => isNaN(a) || isNaN(b) ? String(a).localeCompare(String(b)) : a - b;
  const categorical = name => {
    const text = t => knob(t.knobs[name]), seen = [...new Set(rows.map(text))].sort(order);
    const at = v => seen.indexOf(v) / Math.max(seen.length - 1, 1), stride = Math.ceil(seen.length / 10);
    return { label: name, text, at: t => at(text(t)), ticks: seen.filter((_, i) => i % stride === 0).map(v => [at(v), v]), size: seen.length };
  };
  const numeric = o => {
    const seen = rows.map(t => value(t, o.key)), low = Math.min(...seen), high = Math.max(...seen), log = low > 0 && high / low > 20;
    const scale = v => log ? Math.log(v) : v, span = scale(high) - scale(low) || 1, raw = f => log ? low * (high / low) ** f : low + f * (high - low);
    return { label: o.label, text: t => withUnit(value(t, o.key), o), at: t => (scale(value(t, o.key)) - scale(low)) / span, ticks: [0, 0.25, 0.5, 0.75, 1].map(f => [f, num(raw(f))]) };
  };
  const dimensions = [...D.objectives.map(numeric), ...D.knobs.map(categorical).filter(d => d.size > 1)];
  const lines = (name, group, color, width) => ({ type: "scatter", mode: "lines+markers", name, x: group.flatMap(() => [...dimensions.keys(), null]), y: group.flatMap(t => [...dimensions.map(d => d.at(t)), null]),
    customdata: group.flatMap(t => [...dimensions.map(() => t.number), null]), hovertext: group.flatMap(t => [...dimensions.map(d => `trial ${t.number} · ${esc(t.label)}<br>${esc(d.label)}: ${esc(d.text(t))}`), null]), hoverinfo: "text",
    line: { color, width }, marker: { size: 4, color }, selected: { marker: { color: WARM, size: 6 } }, unselected: { marker: { opacity: 0.4 } } });
  const note = { showarrow: false, font: { ...FONT, size: 11 } };
  const annotations = dimensions.flatMap((d, i) => [{ ...note, x: i, y: 1, yref: "paper", yshift: 6, text: esc(d.label), textangle: -24, xanchor: "left", yanchor: "bottom", font: { ...FONT, size: 12 } },
    ...d.ticks.map(([y, text]) => ({ ...note, x: i, y, text: esc(text), xanchor: "right", xshift: -5, bgcolor: "rgba(255,255,255,.8)", borderpad: 0 }))]);
  el("parallel").style.minWidth = `${90 * dimensions.length}px`;  // many knobs scroll rather than overlap
  Plotly.react("parallel", [lines("dominated", rows.filter(t => !onFront.has(t.number)), "#ccd5de", 1), lines("frontier", front, ACCENT, 1.5)],
    { ...LAYOUT, dragmode: "select", hovermode: "closest", showlegend: false, margin: { l: 10, r: 90, t: 110, b: 10 }, annotations,
      xaxis: { range: [-0.75, dimensions.length - 0.9], visible: false, fixedrange: true }, yaxis: { range: [-0.04, 1.06], visible: false, fixedrange: true },
      shapes: dimensions.map((_, i) => ({ type: "line", x0: i, x1: i, y0: 0, y1: 1, line: { color: "#c9d1d9", width: 1 }, layer: "below" })) }, { ...CONFIG, displayModeBar: false });
  for (const event of ["plotly_selected", "plotly_deselect"]) el("parallel").removeAllListeners(event);
  el("parallel").on("plotly_selected", picked => { if (picked) { state.kept = new Set(picked.points.map(p => p.customdata)); scatter(frontier()); } });
  el("parallel").on("plotly_deselect", () => { state.kept = null; scatter(frontier()); });
}
function hypervolume() {
  const last = D.hypervolume.at(-1) || 1;
  if (D.gap) document.getElementById("gap").textContent = `By hypervolume ${D.gap}.`;
  Plotly.react("hypervolume", [{ type: "scatter", mode: "lines", x: D.trials.map(t => t.number), y: D.hypervolume.map(v => 100 * v / last), line: { shape: "hv", width: 2, color: ACCENT }, fill: "tozeroy", fillcolor: "rgba(29,95,191,.08)", hovertemplate: "trial %{x}: %{y:.1f} %<extra></extra>" }],
    { ...LAYOUT, margin: { l: 56, r: 16, t: 8, b: 44 }, xaxis: { title: { text: "trial", font: { size: 12.5 } }, gridcolor: "#e9edf1", zeroline: false }, yaxis: { title: { text: "% of final hypervolume", font: { size: 12.5 } }, rangemode: "tozero", gridcolor: "#e9edf1" } }, { ...CONFIG, displayModeBar: false });
}
function budget(t) {
  const bars = [t, D.baseline === null ? null : trialOf(D.baseline)].filter((b, i, all) => b && b.parts && all.indexOf(b) === i).reverse();
  const name = b => b.number === D.baseline ? "baseline" : `trial ${b.number}`;
  Plotly.react("budget", D.parts.map((part, i) => ({ type: "bar", orientation: "h", name: part.label, y: bars.map(name), x: bars.map(b => b.parts[i]), marker: { color: PARTS[i] }, hovertemplate: `${part.label}: %{x:,.1f} ms<extra>%{y}</extra>` })).filter(b => b.x.some(v => v > 0)),
    { ...LAYOUT, barmode: "stack", bargap: 0.35, margin: { l: 64, r: 8, t: 4, b: 40 }, xaxis: { title: { text: "mean request latency by phase (ms)", font: { size: 12.5 } }, gridcolor: "#e9edf1", zeroline: false }, yaxis: { automargin: true }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "normal", font: { ...FONT, size: 11.5 } } }, { ...CONFIG, displayModeBar: false });
}
function timeline(t) {
  const course = (D.timelines || {})[t.number], node = el("timeline");
  node.hidden = !course;
  if (!course) return;
  const step = (name, x, y, more) => ({ type: "scatter", mode: "lines", name, x, y, line: { shape: "hv", width: 1.5 }, ...more });
  const pools = Object.entries(course.pools).flatMap(([role, p], i) => [
    step(`${role}: paid for`, p.time_s, p.provisioned, { line: { shape: "hv", width: 1.5, dash: "dot", color: PARTS[i + 1] } }),
    step(`${role}: serving`, p.time_s, p.serving, { line: { shape: "hv", width: 2, color: PARTS[i + 1] } })]);
  const queue = { type: "scatter", mode: "lines", name: "queue", x: course.queue.time_s, y: course.queue.requests, yaxis: "y2", line: { width: 1, color: WARM } };
  const axis = (text, more) => ({ title: { text, font: { size: 12.5 } }, rangemode: "tozero", zeroline: false, gridcolor: "#e9edf1", ...more });
  Plotly.react("timeline", [...pools, queue], { ...LAYOUT, height: 230, margin: { l: 44, r: 48, t: 4, b: 40 }, xaxis: axis("time (s)"), yaxis: axis("replicas"),
    yaxis2: axis("requests waiting", { overlaying: "y", side: "right", showgrid: false }), legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { ...FONT, size: 11.5 } } }, { ...CONFIG, displayModeBar: false });
}
// ---- text
function table(node, heads, rows, textColumns) {
  const cls = i => i < textColumns ? ' class="text"' : "";
  node.innerHTML = `<thead><tr>${heads.map((h, i) => `<th${cls(i)}>${h}</th>`).join("")}</tr></thead><tbody>` +
    rows.map(r => `<tr${r.attributes || ""}>${r.cells.map((c, i) => `<td${cls(i)}>${c}</td>`).join("")}</tr>`).join("") + "</tbody>";
}
const noise = (t, key) => `<span class="noise">${plusMinus(t, key)}</span>`;
function frontierTable(front) {
  const columns = [...D.objectives, ...["output_token_throughput_per_user.p50", "good_request_fraction"].map(axisOf).filter(a => a && !D.objectives.some(o => o.key === a.key))];
  const badge = t => Object.entries(D.picks).filter(([, n]) => n === t.number).map(([name]) => `<span class="badge">${name}</span>`).join("");
  table(el("frontier"), ["trial", "tie", "deployment", "GPU", "GPUs", ...columns.map(a => esc(title(a))), "evidence"], front.map(t => ({
    attributes: ` data-trial="${t.number}"${t.number === state.selected ? ' class="on"' : ""}`,
    cells: [t.number, tie(t), esc(t.label) + badge(t), esc(gpuText(t)), gpuCount(t), ...columns.map(a => num(value(t, a.key)) + noise(t, a.key)), esc(t.evidence) + (t.saturated ? ", saturated" : "")] })), 4);
  el("frontier").querySelectorAll("[data-trial]").forEach(row => row.onclick = () => pin(+row.dataset.trial));
}
function select(number) {
  state.selected = number;
  const t = trialOf(number), base = D.baseline === null ? null : trialOf(D.baseline), at = D.frontier.indexOf(number);
  el("selected-title").innerHTML = `Trial ${number} · ${esc(t.label)} <span class="muted">${gpuCount(t)} × ${esc(gpuText(t))}</span><span class="badge">${esc(t.evidence)}</span>`;
  budget(t);
  el("bottleneck").textContent = t.bottleneck;
  timeline(t);
  const file = at >= 0 ? `${String(at + 1).padStart(4, "0")}.yaml` : number === D.baseline ? "baseline.yaml" : null;
  el("detail").innerHTML = `<table id="numbers"></table><table id="changes"></table>` + (file ? `<code>dynosim predict runs/${esc(D.study)}/recommendations/${file}</code>` : "");
  const keys = [...new Set([...D.objectives.map(o => o.key), "output_token_throughput_per_user.p1", "good_request_fraction", "prefix_cache_hit_rate"])].filter(k => k in t.metrics);
  table(el("numbers"), ["metric", "value", "real / this", "vs baseline"], keys.map(k => ({ cells: [esc(axisOf(k).label), `${withUnit(value(t, k), axisOf(k))} ${noise(t, k)}`, `<span class="whole">${factors(t, k)}</span>`, base && base !== t ? delta(axisOf(k), value(t, k), value(base, k)) : ""] })), 1);
  table(el("changes"), ["knob", "baseline", "this trial"], differences(t).map(([k, a, b]) => ({ cells: [esc(k), esc(knob(a)), esc(knob(b))] })), 1);
  el("frontier").querySelectorAll("tr").forEach(row => row.classList.toggle("on", +row.dataset.trial === number));
}
function pin(number) { select(number); scatter(frontier()); }
function cards() {
  const base = D.baseline === null ? null : trialOf(D.baseline);
  el("picks").innerHTML = Object.entries(D.picks).map(([name, n]) => { const t = trialOf(n);
    return `<button class="card" data-trial="${n}"><h3><b>${name}</b><span>${esc(t.label)} <span class="muted">${gpuCount(t)} GPUs · trial ${n}</span></span></h3><table>` +
      D.objectives.map(o => `<tr><td>${esc(o.label)}</td><td>${withUnit(value(t, o.key), o)}</td><td>${base ? delta(o, value(t, o.key), value(base, o.key)) : ""}</td></tr>`).join("") + "</table></button>"; }).join("");
  el("picks").querySelectorAll("[data-trial]").forEach(card => card.onclick = () => pin(+card.dataset.trial));
}
function head() {
  const count = test => D.trials.filter(test).length, base = D.baseline === null ? null : trialOf(D.baseline);
  el("title").textContent = D.space;
  el("subtitle").textContent = `${D.study}${D.state === "running" ? " · running" : ""} · SLO: ${D.slo.map(s => `${s.label} ${s.better === "higher" ? "≥" : "≤"} ${withUnit(s.bound, s)}`).join(", ") || "none"}${base ? ` · baseline ${base.label}; percentages compare with it` : ""}`;
  const tiles = { trials: D.trials.length, feasible: count(t => t.feasible), frontier: D.frontier.length, infeasible: count(t => t.status === "infeasible"), lost: count(t => t.status === "lost"), failed: count(t => t.status === "failed") };
  el("tiles").innerHTML = Object.entries(tiles).map(([k, v]) => `<div><dt>${k}</dt><dd>${v}</dd></div>`).join("");
  el("tradeoff").textContent = D.tradeoff;
  el("health").innerHTML = D.health.map(c => `<li class="${c.level}">${esc(c.text)}</li>`).join("");
  el("provenance").innerHTML = Object.entries(D.provenance || {}).map(([k, v]) => `<div><dt>${esc(k)}</dt><dd>${esc(v)}</dd></div>`).join("");
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
  const option = a => `<option value="${esc(a.key)}">${esc(title(a))}</option>`, second = D.objectives[1] || D.axes[1];
  Object.assign(state, { x: D.objectives[0].key, y: second.key, color: (D.objectives[2] || axisOf("gpus") || second).key });
  for (const name of ["x", "y", "color"]) { el(name).innerHTML = D.axes.map(option).join(""); el(name).value = state[name]; el(name).onchange = () => { state[name] = el(name).value; draw(); }; }
  reset();
}
function reset() {
  Object.assign(state, { price: { ...D.prices }, bound: Object.fromEntries(D.slo.map(s => [s.key, s.bound])), maxGpus: Infinity });
  el("whatif").innerHTML = "";
  for (const [gpu, usd] of Object.entries(D.prices)) slider(`${gpu} price`, usd / 4, usd * 4, () => state.price[gpu], v => state.price[gpu] = v, v => `$${v.toFixed(2)}/h`);
  for (const s of D.slo) slider(`${s.label} ${s.better === "higher" ? "≥" : "≤"}`, s.bound / 8, s.bound * 8, () => state.bound[s.key], v => state.bound[s.key] = v, v => withUnit(v, s));
  const most = Math.max(2, ...D.trials.map(gpusOf));
  slider("at most", 1, most, () => Math.min(state.maxGpus, most), v => state.maxGpus = v >= most ? Infinity : Math.max(1, Math.round(v)), v => `${v} GPUs`);
  const button = Object.assign(document.createElement("button"), { className: "plain", textContent: "Reset", onclick: () => { reset(); draw(); } });
  el("whatif").append(button);
}
function draw() {
  const front = frontier();
  cards(); frontierTable(front); select(state.selected);
  scatter(front); parallel(front);  // after the text beside it, whose height it takes
  const hidden = D.trials.filter(t => t.status !== "complete").length;
  el("whatif-note").textContent = (touched() ? `What if: ${D.trials.filter(meets).length} of the stored trials remain feasible, ${front.length} on the frontier. ` : "What if: move a slider to re-price and re-filter the stored trials; nothing is simulated again. ") +
    (hidden ? `${hidden} trials have no point here: infeasible before simulation, ended early because an SLO was lost, or failed.` : "");
}
function show(fresh) {
  const first = !D;
  D = fresh;
  if (!D.trials.length) { el("title").textContent = D.space; el("subtitle").textContent = "waiting for the first trial"; D = undefined; return; }
  if (first) controls();
  if (state.selected === null) state.selected = D.picks.balanced ?? D.baseline ?? D.trials[0].number;
  for (const gpu in D.prices) state.price[gpu] ??= D.prices[gpu];
  head(); draw(); hypervolume();
  if (first) el("scatter").on("plotly_click", event => { if (event.points[0].customdata !== undefined) pin(event.points[0].customdata); });
}
function follow() {
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
if (LIVE) follow(); else show(JSON.parse(el("data").textContent));
