// Plotly's drawings of the view. Colours are the style sheet's, which follow the system's light or dark mode.
let COLOR, FONT, LAYOUT;
const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] }, STILL = { ...CONFIG, displayModeBar: false };
const SYMBOLS = { measured: "square", calibrated: "circle", modelled: "circle", extrapolated: "triangle-up" };
function readColors() {
  const style = getComputedStyle(document.documentElement), read = name => style.getPropertyValue(`--${name}`).trim();
  COLOR = Object.fromEntries(["ink", "muted", "grid", "axis", "panel", "accent", "warm", "grey", "missed", "pick", "noise", "band", "fill"].map(name => [name, read(name)]));
  COLOR.parts = [1, 2, 3, 4, 5, 6].map(i => read(`part-${i}`));
  COLOR.scale = [0, 0.25, 0.5, 0.75, 1].map((at, i) => [at, read(`scale-${i + 1}`)]);
  FONT = { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: COLOR.ink };
  LAYOUT = { font: FONT, paper_bgcolor: COLOR.panel, plot_bgcolor: COLOR.panel, hoverlabel: { align: "left", bgcolor: COLOR.panel, bordercolor: COLOR.axis, font: FONT } };
}
const plainAxis = (text, more) => ({ title: { text, font: { size: 12.5 } }, rangemode: "tozero", zeroline: false, gridcolor: COLOR.grid, ...more });
const topLegend = () => ({ orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "normal", font: { ...FONT, size: 11.5 } });
function decades(low, high) {
  const steps = high / low > 1e7 ? [1] : [1, 2, 5], ticks = [];
  for (let d = Math.floor(Math.log10(low)) - 1; d <= Math.log10(high) + 1; d++) ticks.push(...steps.map(m => m * 10 ** d));
  return { tickvals: ticks, ticktext: ticks.map(v => v >= 1 ? v.toLocaleString("en-US") : String(+v.toPrecision(1))) };
}
// The first view holds what matters: feasible trials and the baseline, or all where nothing is feasible. Saturated ones lie decades away.
function plotAxis(key, drawn) {
  const axis = axisOf(key), near = drawn.filter(t => meets(t) || t.number === D.baseline), all = drawn.map(t => value(t, key));
  const seen = view.front.length ? near.map(t => value(t, key)) : all, low = Math.min(...seen), high = Math.max(...seen);
  const log = Math.min(...all) > 0 && high / low > 5, scale = v => log ? Math.log10(v) : v;
  const span = scale(high) - scale(low) || Math.abs(scale(high)) || 1;
  const better = `${axis.direction === "maximize" ? "higher" : "lower"} is better${log ? ", log scale" : ""}`;
  return { title: { text: `${title(axis)}<br><span style="font-size:11px;color:${COLOR.muted}">${better}</span>`, standoff: 10, font: { size: 13 } },
    type: log ? "log" : "linear", range: [scale(low) - 0.12 * span, scale(high) + 0.22 * span], ...(log ? decades(Math.min(...all), Math.max(...all)) : {}),
    gridcolor: COLOR.grid, linecolor: COLOR.axis, ticks: "outside", tickcolor: COLOR.axis, zeroline: false, automargin: true, exponentformat: "none", separatethousands: true };
}
// ---- how far a number may be off; both scale with what-if prices
const interval = (t, key) => { const ends = t.intervals[key], scale = value(t, key) / t.axes[key]; return ends && ends.map(v => v * scale); };
const band = (t, key) => factorsOf(t, key) && factorsOf(t, key).map(factor => value(t, key) * factor);
function bars(trials, key) {
  const ends = trials.map(t => [interval(t, key), value(t, key)]);
  return { type: "data", symmetric: false, array: ends.map(([e, v]) => e ? e[1] - v : 0), arrayminus: ends.map(([e, v]) => e ? v - e[0] : 0), thickness: 1, width: 0, color: COLOR.noise };
}
// A band need not hold its own point: where the model is known to be biased it lies to one side.
function modelBands(trials) {
  const along = (key, at) => trials.filter(t => factorsOf(t, key)).flatMap(t => [...band(t, key).map(v => at(t, v)), [null, null]]);
  const points = [...along(state.x, (t, v) => [v, value(t, state.y)]), ...along(state.y, (t, v) => [value(t, state.x), v])];
  return { type: "scatter", mode: "lines", name: "model band (picks, pinned)", x: points.map(p => p[0]), y: points.map(p => p[1]), line: { width: 7, color: COLOR.band }, hoverinfo: "skip" };
}
function hover(t) {
  const lines = D.objectives.map(o => `${esc(o.label)}: <b>${withUnit(value(t, o.name), o)}</b> ${plusMinus(t, o.name)}${factorsOf(t, o.name) ? ` · real / this ${factors(t, o.name)}` : ""}`);
  const extra = EXTRA.filter(k => k in t.axes && !D.objectives.some(o => o.name === k)).map(k => `${esc(axisOf(k).label)}: ${withUnit(value(t, k), axisOf(k))}`);
  const changes = t.number === D.baseline ? ["baseline"] : differences(t).slice(0, 9).map(([k, a, b]) => `${esc(k)}: ${a === undefined ? "" : esc(knob(a)) + " → "}${esc(knob(b))}`);
  const leader = view.leader.get(t) || t, flags = [(t.evidence || "") + (leader === t ? "" : `, not told apart from trial ${leader.number}`), t.served < 0.99 ? `serves only ${(100 * t.served).toFixed(0)} % of the requests` : "", t.saturated ? "saturated: backlog grew" : "", meets(t) ? "" : "misses a bound"].filter(Boolean);
  return [`<b>trial ${t.number} · ${esc(t.label)}</b> · ${gpuCount(t)} × ${esc(gpuText(t))}`, ...lines, ...extra, ...flags, "", ...changes].join("<br>");
}
function shades(trials) {
  const axis = axisOf(state.color), raw = trials.map(t => value(t, state.color)), log = Math.min(...raw) > 0 && Math.max(...raw) / Math.min(...raw) > 20;
  const color = raw.map(v => log ? Math.log10(v) : v), low = Math.min(...color), high = Math.max(...color), at = high > low ? [0, 0.25, 0.5, 0.75, 1].map(f => low + f * (high - low)) : [low];
  const across = innerWidth < 700 ? { orientation: "h", y: 1, yanchor: "bottom", title: { text: title(axis), side: "top", font: { size: 12 } } } : { len: 0.9, title: { text: title(axis), side: "right", font: { size: 13 } } };
  return { color, colorscale: COLOR.scale, colorbar: { thickness: 12, outlinewidth: 0, tickvals: at, ticktext: at.map(v => num(log ? 10 ** v : v)), ...across } };
}
function scatter() {
  const has = t => t.status === "complete" && value(t, state.x) !== undefined && value(t, state.y) !== undefined;
  const all = D.trials.filter(has), drawn = all.filter(kept), front = drawn.filter(t => view.leader.has(t)), rest = drawn.filter(t => !view.leader.has(t));
  const trace = (name, trials, marker, more) => ({ type: "scatter", mode: "markers", name, x: trials.map(t => value(t, state.x)), y: trials.map(t => value(t, state.y)),
    customdata: trials.map(t => t.number), hovertext: trials.map(hover), hoverinfo: "text", marker, ...more });
  const stars = [...new Set(Object.values(view.picks))].filter(t => drawn.includes(t)).sort((a, b) => value(a, state.x) - value(b, state.x)), pinned = drawn.filter(t => t.number === state.selected);
  const edge = { width: 1, color: COLOR.panel }, symbols = front.map(t => (SYMBOLS[t.evidence] || "circle") + (t.saturated ? "-open" : ""));
  const traces = [
    trace("misses a bound", rest.filter(t => !meets(t) && !t.saturated), { symbol: "x-thin", size: 7, line: { width: 1.4, color: COLOR.missed } }),
    trace("saturated", rest.filter(t => t.saturated), { symbol: "circle-open", size: 7, color: COLOR.missed }),
    trace("feasible, dominated", rest.filter(t => meets(t) && !t.saturated), { size: 7, color: COLOR.grey }),
    modelBands([...new Set([...stars, ...pinned])]),
    trace("frontier", front, { symbol: symbols, size: front.map(t => view.leaders.includes(t) ? 11 : 7), line: edge, ...shades(front) }, { error_x: bars(front, state.x), error_y: bars(front, state.y) }),
    trace("baseline", drawn.filter(t => t.number === D.baseline), { symbol: "diamond", size: 14, color: COLOR.warm, line: edge }),
    trace("picks", stars, { symbol: "star", size: 17, color: COLOR.pick, line: { width: 1.2, color: COLOR.ink } },
      { mode: "markers+text", text: stars.map(t => pickNames(t).join(", ")), textposition: stars.map((_, i) => i % 2 ? "bottom right" : "top right"), textfont: { ...FONT, size: 13 }, cliponaxis: false }),
    trace("pinned", pinned, { symbol: "circle-open", size: 22, color: COLOR.ink, line: { width: 1.5 } }, { hoverinfo: "skip", showlegend: false }),
  ];
  if (D.objectives.length === 2 && state.x === D.objectives[0].name && state.y === D.objectives[1].name)
    traces.splice(3, 0, { type: "scatter", mode: "lines", x: view.front.map(t => value(t, state.x)), y: view.front.map(t => value(t, state.y)), line: { shape: "hv", width: 1.5, color: COLOR.accent }, hoverinfo: "skip", showlegend: false });
  Plotly.react("scatter", traces.filter(t => t.x.length), { ...LAYOUT, xaxis: plotAxis(state.x, all), yaxis: plotAxis(state.y, all), hovermode: "closest",
    margin: { l: 64, r: 16, t: 12, b: 56 }, legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, itemsizing: "constant" }, uirevision: state.x + state.y }, CONFIG);
}
function hypervolume() {
  const last = D.hypervolume.at(-1) || 1;
  const curve = { type: "scatter", mode: "lines", x: D.trials.map(t => t.number), y: D.hypervolume.map(v => 100 * v / last), line: { shape: "hv", width: 2, color: COLOR.accent }, fill: "tozeroy", fillcolor: COLOR.fill, hovertemplate: "trial %{x}: %{y:.1f} %<extra></extra>" };
  Plotly.react("hypervolume", [curve], { ...LAYOUT, margin: { l: 56, r: 16, t: 8, b: 44 }, xaxis: plainAxis("trial", { rangemode: "normal" }), yaxis: plainAxis("% of final hypervolume") }, STILL);
}
function budget(t) {
  const shown = [t, baseline()].filter((b, i, all) => b && b.parts && all.indexOf(b) === i).reverse(), name = b => b.number === D.baseline ? "baseline" : `trial ${b.number}`;
  const part = (p, i) => ({ type: "bar", orientation: "h", name: p.label, y: shown.map(name), x: shown.map(b => b.parts[i]), marker: { color: COLOR.parts[i] }, hovertemplate: `${p.label}: %{x:,.1f} ms<extra>%{y}</extra>` });
  Plotly.react("budget", D.parts.map(part).filter(b => b.x.some(v => v > 0)), { ...LAYOUT, barmode: "stack", bargap: 0.35, margin: { l: 64, r: 8, t: 4, b: 48 },
    xaxis: plainAxis("mean request latency by phase (ms)"), yaxis: { automargin: true }, legend: topLegend() }, STILL);
}
function timeline(t) {
  const course = (D.timelines || {})[t.number];
  el("timeline").hidden = !course;
  if (!course) return;
  const step = (name, p, y, line) => ({ type: "scatter", mode: "lines", name, x: p.time_s, y, line: { shape: "hv", ...line } });
  const pools = Object.entries(course.pools).flatMap(([role, p], i) => [
    step(`${role}: paid for`, p, p.provisioned, { width: 1.5, dash: "dot", color: COLOR.parts[i + 1] }), step(`${role}: serving`, p, p.serving, { width: 2, color: COLOR.parts[i + 1] })]);
  const queue = { type: "scatter", mode: "lines", name: "queue", x: course.queue.time_s, y: course.queue.requests, yaxis: "y2", line: { width: 1, color: COLOR.warm } };
  Plotly.react("timeline", [...pools, queue], { ...LAYOUT, height: 230, margin: { l: 44, r: 48, t: 4, b: 40 }, xaxis: plainAxis("time (s)"), yaxis: plainAxis("replicas"),
    yaxis2: plainAxis("requests waiting", { overlaying: "y", side: "right", showgrid: false }), legend: topLegend() }, STILL);
}
