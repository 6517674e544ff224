"use strict";
// What the stored trials say under the prices and bounds of the what-if bar. Nothing here touches the page.
const state = { x: null, y: null, color: null, selected: null, price: {}, bound: {}, maxGpus: Infinity, brushes: new Map(), open: new Set() };
let D;
// ---- numbers and names
const fixed = (v, digits) => v.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits, roundingMode: "halfEven" });
const digitsOf = v => v ? Math.min(Math.max(2 - Math.floor(Math.log10(Math.abs(v))), 0), 5) : 0;
function num(v) {
  if (v === undefined || v === null) return "–";
  const size = Math.abs(v), digits = digitsOf(v);
  if (size && (size < 1e-3 || size >= 1e7)) return v.toExponential(2);
  return fixed(v, digits);
}
// A bound is rounded to the side on which it still holds.
function numAtMost(v, direction) {
  const step = 10 ** digitsOf(v), round = direction === "minimize" ? Math.ceil : Math.floor;
  return num(round(v * step * (1 - 1e-12 * Math.sign(v))) / step);
}
function percent(v, reference) {
  if (!reference) return "n/a";
  if (v > 0 && v < 0.01 * reference) return `${fixed(reference / v, 0)} x lower`;
  const change = 100 * (v - reference) / Math.abs(reference);
  return `${change < 0 ? "−" : "+"}${fixed(Math.abs(change), 0)} %`;
}
const shown = unit => ["ratio", "count", "GPUs"].includes(unit) ? "" : unit;
const withUnit = (v, axis) => `${num(v)} ${shown(axis.unit)}`.trim();
const title = axis => shown(axis.unit) ? `${axis.label} (${axis.unit})` : axis.label;
const axisOf = key => D.axes.find(a => a.name === key);
const trialOf = number => D.trials.find(t => t.number === number);
const baseline = () => D.baseline === null ? undefined : trialOf(D.baseline);
// ---- prices and bounds
function repriced(t, v, unit) {
  if (v === undefined || !unit.startsWith("USD")) return v;
  const cost = prices => Object.entries(t.gpu_counts).reduce((sum, [gpu, n]) => sum + n * prices[gpu], 0);
  return v * (cost(state.price) / cost(D.prices));
}
const factorsOf = (t, key) => {
  const [metric, stat] = key.split(".");  // tails have a band of their own (model_band.band_of)
  return key in t.axes ? t.model_bands[[undefined, "avg", "p50"].includes(stat) ? metric : `${metric}.p99`] : undefined;
};
const value = (t, key) => repriced(t, t.axes[key], axisOf(key).unit);
const touched = () => state.maxGpus !== Infinity || D.slo.some(s => state.bound[s.name] !== s.bound) ||
  Object.keys(D.prices).some(gpu => state.price[gpu] !== D.prices[gpu]);
const limits = () => [
  ...D.slo.map(s => ({ ...s, bound: state.bound[s.name], of: t => repriced(t, t.slo[s.name], s.unit), text: v => `${s.label} ${s.direction === "maximize" ? "≥" : "≤"} ${v} ${shown(s.unit)}`.trim() })),
  { direction: "minimize", bound: state.maxGpus, of: t => t.gpus, text: v => `at most ${v} GPUs` }];
const holds = (limit, v) => limit.direction === "maximize" ? v >= limit.bound : v <= limit.bound;
const meets = t => t.status === "complete" && limits().every(limit => holds(limit, limit.of(t)));
// ---- frontier, picks and trade-off: the rules of Study.frontier, Study.picks and report.tradeoff
const lossesOf = (t, objectives) => objectives.map(o => (o.direction === "maximize" ? -1 : 1) * value(t, o.name));
let losses;  // of what is left, in all objectives
function nondominated(points) {
  const atMost = (a, b) => a.every((v, i) => v <= b[i]);
  return points.map((p, i) => !points.some((q, j) => i !== j && atMost(q, p) && (j < i || !atMost(p, q))));
}
function compare(a, b) {
  const i = a.findIndex((v, i) => v !== b[i]);
  return i < 0 ? 0 : a[i] - b[i];
}
function frontier() {
  const left = D.trials.filter(meets), points = left.map(t => lossesOf(t, D.objectives)), keep = nondominated(points);
  losses = new Map(left.map((t, i) => [t, points[i]]));
  return left.filter((_, i) => keep[i]).sort((a, b) => compare(losses.get(a), losses.get(b)));
}
function knee(points) {
  const along = i => points.map(p => p[i]), ideal = points[0].map((_, i) => Math.min(...along(i)));
  const span = ideal.map((low, i) => Math.max(...along(i)) - low || 1);
  const far = points.map(p => Math.hypot(...p.map((v, i) => (v - ideal[i]) / span[i])));
  return far.indexOf(Math.min(...far));
}
// ---- what noise cannot tell apart: the rule of search.ties, whose noise is relative and so outlives other prices
function covers(a, b) {
  const [x, y] = [losses.get(a), losses.get(b)], error = a.noise.evidence === b.noise.evidence ? "spread" : "wide";
  return x.every((v, i) => {
    if (v <= y[i]) return true;
    const sampling = Math.hypot(...a.noise.deviations[i].map((d, k) => d - b.noise.deviations[i][k]));
    const noise = Math.max(Math.hypot(sampling, a.noise[error][i], b.noise[error][i]), D.same_within[i]);
    return v - y[i] <= noise * (Math.abs(v) + Math.abs(y[i])) / 2;
  });
}
const beats = (a, b) => covers(a, b) && !covers(b, a);
function groups(front) {
  const exact = new Set(front), near = D.trials.filter(t => meets(t) && !exact.has(t) && !front.some(f => beats(f, t)));
  const trials = [...front, ...near], beaten = new Map(trials.map(b => [b, trials.filter(a => a !== b && beats(a, b))])), found = [];
  for (const free = new Set(trials); free.size;) {
    const unbeaten = [...free].filter(t => !beaten.get(t).some(a => free.has(a)));
    const leader = (unbeaten.length ? unbeaten : [...free]).reduce((best, t) => t.preference < best.preference ? t : best);
    const members = [...free].filter(t => t !== leader && covers(leader, t));
    [leader, ...members].forEach(t => free.delete(t));
    found.push([leader, ...members.filter(t => exact.has(t))]);
  }
  return found.sort(([a], [b]) => compare(losses.get(a), losses.get(b)));
}
// A pick is the leader closest to the best of its objectives; with one objective, the best.
function picks(leaders) {
  const steady = leaders.filter(t => !t.saturated), from = steady.length ? steady : leaders;
  const best = places => from[knee(from.map(t => lossesOf(t, places.map(i => D.objectives[i]))))];
  return Object.fromEntries(from.length ? Object.entries(D.best_at).map(([name, places]) => [name, best(places)]) : []);
}
// One row a layout, by its pick or the balanced one of its leaders; of a single layout, every leader. The rest are variants.
function folded(found, picked) {
  const layouts = new Map(), chosen = new Set(Object.values(picked));
  for (const group of found) {
    const { label, engine, precision, router, gpu } = group[0], name = JSON.stringify([label, engine, precision, router, gpu]);
    layouts.set(name, [...(layouts.get(name) || []), group]);
  }
  const row = (shown, some) => ({ shown, variants: some.flat().filter(t => t !== shown) });
  if (layouts.size === 1) return found.map(group => row(group[0], [group]));
  const shown = leaders => leaders.find(t => chosen.has(t)) || leaders[knee(leaders.map(t => losses.get(t)))];
  const place = ({ shown }) => found.findIndex(group => group[0] === shown);
  return [...layouts.values()].map(some => row(shown(some.map(group => group[0])), some)).sort((a, b) => place(a) - place(b));
}
// All that the page shows of what is left.
function look() {
  const front = frontier(), found = groups(front), leaders = found.map(group => group[0]), picked = picks(leaders);
  const leader = new Map(found.flatMap(group => group.map(t => [t, group[0]])));
  return { front, leaders, picks: picked, rows: folded(found, picked), leader };  // leader: of each point, perhaps itself
}
function tradeoff(front) {
  if (!front.length) return nothingLeft();
  if (!D.tradeoff_pair.length) return "";
  const pair = D.tradeoff_pair.map(i => D.objectives[i]), points = front.map(t => lossesOf(t, pair)), keep = nondominated(points);
  const order = [...front.keys()].filter(i => keep[i]).sort((a, b) => points[a][0] - points[b][0]);
  const ends = new Set([0, knee(order.map(i => points[i])), order.length - 1]);
  const stops = [...ends].sort((a, b) => a - b).map(i => front[order[i]]);
  if (stops.length === 1) return `No trade-off between ${pair.map(o => o.display).join(" and ")}: trial ${stops[0].number} is best in both.`;
  const step = (a, b) => pair.map(o => `${percent(value(b, o.name), value(a, o.name))} ${o.display}`).join(" buys ");
  const first = `From ${stops.slice(0, 2).map(t => `${t.label} (trial ${t.number})`).join(" to ")}, ${step(stops[0], stops[1])}`;
  return first + (stops[2] ? `; beyond trial ${stops[1].number}, another ${step(stops[1], stops[2])}.` : ".");
}
// The nearest trial misses the fewest bounds, and of those that miss as many, by the least.
function nothingLeft() {
  const all = limits(), missed = t => all.filter(limit => !holds(limit, limit.of(t)));
  const far = ([t, broken]) => broken.reduce((sum, limit) => sum + Math.abs(limit.of(t) - limit.bound) / Math.abs(limit.bound || 1), 0);
  const known = D.trials.filter(t => t.status === "complete" && all.every(limit => limit.of(t) !== undefined));
  if (!known.length) return "Nothing is left: no trial ran to its end.";
  const [t, broken] = known.map(t => [t, missed(t)]).sort((a, b) => a[1].length - b[1].length || far(a) - far(b))[0];
  const said = text => broken.map(text).join(" and ");
  return `Nothing is left: ${said(limit => limit.text(num(limit.bound)))} ${broken.length > 1 ? "together leave" : "leaves"} no trial. ` +
    `${said(limit => limit.text(numAtMost(limit.of(t), limit.direction)))} would leave trial ${t.number}.`;
}
