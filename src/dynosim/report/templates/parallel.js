// Parallel axes of what varies: searched knobs and objectives. Drag along an axis to keep a range of it, click it to let go.
// Plain SVG: Plotly's own parallel coordinates need WebGL and eval, which a strict server or desktop refuses.
const TOP = 112, HEIGHT = 300, LEFT = 76, RIGHT = 150, STEP = 64;
const byValue = (a, b) => isNaN(a) || isNaN(b) ? String(a).localeCompare(String(b)) : a - b;
const knob = v => v === undefined ? "–" : typeof v === "object" ? JSON.stringify(v) : String(v);
const kept = t => [...state.brushes.values()].every(brush => brush.has(brush.of(t)));

function categorical({ path, label }, rows) {
  const of = t => knob(t.point[path]), seen = [...new Set(rows.map(of))].sort(byValue), stride = Math.ceil(seen.length / 10);
  const at = v => seen.indexOf(v) / Math.max(seen.length - 1, 1);
  const brush = (low, high) => { const some = seen.filter(v => low <= at(v) && at(v) <= high); return { label, of, has: v => some.includes(v), ends: [some[0], some.at(-1)] }; };
  return { name: path, label, of, at, brush, text: of, size: seen.length, ticks: seen.filter((_, i) => i % stride === 0).map(v => [at(v), v]) };
}
function numeric(o, rows) {
  const of = t => value(t, o.name), seen = rows.map(of), low = Math.min(...seen), high = Math.max(...seen), log = low > 0 && high / low > 20;
  const scale = v => log ? Math.log(v) : v, span = scale(high) - scale(low) || 1, at = v => (scale(v) - scale(low)) / span;
  const raw = f => log ? Math.exp(scale(low) + f * span) : low + f * span;
  const brush = (from, to) => { const ends = [raw(from), raw(to)]; return { label: o.label, of, has: v => ends[0] <= v && v <= ends[1], ends }; };
  return { name: o.name, label: o.label, of, at, brush, text: t => withUnit(of(t), o), size: 2, ticks: [0, 0.25, 0.5, 0.75, 1].map(f => [f, num(raw(f))]) };
}
function parallel() {
  const node = el("parallel"), rows = D.trials.filter(meets), onFront = view.leader;
  node.innerHTML = '<p class="muted small">No trial is left.</p>';
  if (!rows.length) return;
  const axes = [...D.objectives.map(o => numeric(o, rows)), ...D.knobs.map(k => categorical(k, rows))].filter(a => a.size > 1);
  const width = Math.max(node.parentNode.clientWidth, LEFT + RIGHT + STEP * (axes.length - 1));
  const x = i => LEFT + i * (width - LEFT - RIGHT) / Math.max(axes.length - 1, 1), y = f => TOP + (1 - Math.min(Math.max(f, 0), 1)) * HEIGHT;
  const room = Math.max(Math.floor((x(1) - x(0) - 12) / 6.5), 4), cut = text => text.length > room ? `${text.slice(0, room - 1)}…` : text;
  const line = t => `<polyline data-trial="${t.number}" class="${onFront.has(t) ? "front" : ""}${kept(t) ? "" : " out"}" points="${axes.map((a, i) => `${x(i)},${y(a.at(a.of(t)))}`).join(" ")}">` +
    `<title>trial ${t.number} · ${esc(t.label)}\n${axes.map(a => esc(`${a.label}: ${a.text(t)}`)).join("\n")}</title></polyline>`;
  const brushed = (a, i) => { const brush = state.brushes.get(a.name); if (!brush) return ""; const [low, high] = brush.ends.map(a.at);
    return `<rect class="brush" x="${x(i) - 9}" width="18" y="${y(high) - 4}" height="${y(low) - y(high) + 8}"/>`; };
  const axis = (a, i) => `<line x1="${x(i)}" x2="${x(i)}" y1="${TOP}" y2="${TOP + HEIGHT}"/><text class="name" transform="translate(${x(i)} ${TOP - 12}) rotate(-24)">${esc(a.label)}</text>` +
    a.ticks.map(([f, text]) => `<text class="tick" x="${x(i) - 6}" y="${y(f) + 4}">${esc(cut(text))}</text>`).join("") + brushed(a, i) +
    `<rect class="grip" data-axis="${i}" x="${x(i) - 16}" width="32" y="${TOP - 8}" height="${HEIGHT + 16}"/>`;
  const back = [...rows].sort((a, b) => onFront.has(a) - onFront.has(b));
  node.innerHTML = `<svg width="${width}" height="${TOP + HEIGHT + 16}" role="img" aria-label="Searched knobs and objectives of the feasible trials">${back.map(line).join("")}${axes.map(axis).join("")}</svg>`;
  node.querySelectorAll("polyline").forEach(path => path.onclick = () => pin(+path.dataset.trial));
  node.querySelectorAll(".grip").forEach(grip => grip.onpointerdown = event => drag(grip, axes[grip.dataset.axis], event));
}
function drag(grip, axis, start) {
  const top = grip.ownerSVGElement.getBoundingClientRect().top + TOP, at = event => Math.min(Math.max(1 - (event.clientY - top) / HEIGHT, -0.02), 1.02);
  const from = at(start), range = grip.cloneNode();
  range.setAttribute("class", "brush");
  grip.before(range);
  grip.setPointerCapture(start.pointerId);
  grip.onpointermove = event => {
    range.setAttribute("y", TOP + (1 - Math.max(from, at(event))) * HEIGHT);
    range.setAttribute("height", Math.abs(at(event) - from) * HEIGHT);
  };
  grip.onpointercancel = parallel;
  grip.onpointerup = event => {
    const [low, high] = [from, at(event)].sort((a, b) => a - b), brush = axis.brush(low, high);
    if (high - low < 0.02 || brush.ends[0] === undefined) state.brushes.delete(axis.name); else state.brushes.set(axis.name, brush);
    filtered();
  };
}
