"use strict";
// The board: one table and two charts over the same filtered rows. `BOARD` is what board.py: board_data returns.
// plot.js draws, law.js fits. All that is shown is set as text, never as markup.

const RAMPS = { light: ["#a6dbb9", "#5cc0c0", "#2c9bc4", "#2168ad", "#253494", "#0b1d51"], dark: ["#5b6ee1", "#3f8fd8", "#3fb0c4", "#62c9a2", "#b5dd7b", "#f7ec9a"] };
const NAMED = {  // Okabe & Ito 2008
  light: ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5e3c99", "#444444"],
  dark: ["#ff8c3a", "#56b4e9", "#2fc79a", "#e79fc8", "#f0c446", "#a8d8f5", "#b79df0", "#dddddd"],
};
const GREYS = { light: "#b9bec3", dark: "#5b6268" };
const AXES = { tokens: "training tokens", step: "optimizer steps", flops: "compute (FLOPs)", seconds: "wall-clock time (s)" };
const BAD = ["failed", "stopped", "unreadable"];
const BANDS = 40;  // at most so many lines have bands by themselves
const CONTROLS = ["x", "y", "logx", "logy", "smooth", "bands", "seeds", "color", "view", "sx", "sy", "slogx", "slogy"];
const el = (id) => document.getElementById(id);
const state = { sort: "name", down: false, filter: "", pins: new Map(), shown: [...BOARD.shown], open: null, zoom: null, szoom: null, theme: "" };
const plots = {};
let visible = [], rowsByName = new Map(), started = {};

// ---- Numbers and names ----

const known = (v) => v !== null && v !== undefined;

function text(key, v) {
  if (!known(v)) return "";
  if (typeof v !== "number") return String(v);
  if (BOARD.counts.includes(key)) return short(v);
  if (key.startsWith("flops")) return v.toExponential(2).replace("+", "");
  if (key === "started") return new Date(1000 * v).toLocaleString();
  if (key === "seconds") return v < 60 ? `${v.toFixed(0)} s` : v < 3600 ? `${(v / 60).toFixed(1)} min` : `${(v / 3600).toFixed(2)} h`;
  if (/^(loss|bpb|train\/|eval\/)/.test(key)) return v.toFixed(4);
  return Math.abs(v) >= 1e9 ? (+v.toPrecision(5)).toExponential().replace("+", "") : String(+v.toPrecision(5));
}

const columns = () => [...new Set(BOARD.rows.flatMap(Object.keys))];
const numbers = new Map();  // column: whether all that is known of it are numbers
function isNumber(key) {
  if (!numbers.has(key)) {
    const values = BOARD.rows.map((r) => r[key]).filter(known);
    numbers.set(key, values.length > 0 && values.every((v) => typeof v === "number"));
  }
  return numbers.get(key);
}

const split = new Map();
function parts(name) {  // width=64 before width=128, lr=1e-3 before lr=2e-3
  if (!split.has(name))
    split.set(name, String(name).split(/(\d+\.?\d*(?:e[+-]?\d+)?)/i).filter(Boolean).map((p) => (/^\d/.test(p) ? Number(p) : p)));
  return split.get(name);
}

function natural(a, b) {
  const x = parts(a), y = parts(b);
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    if (x[i] === y[i]) continue;
    if (typeof x[i] === "number" && typeof y[i] === "number") return x[i] - y[i];
    if (typeof x[i] !== typeof y[i]) return typeof x[i] === "number" ? -1 : 1;
    return x[i] < y[i] ? -1 : 1;
  }
  return x.length - y.length;
}

// ---- Which rows ----

function conditions(words) {
  const have = new Set(columns()), tests = [];
  el("problem").textContent = "";
  for (const word of words.split(/\s+/).filter(Boolean)) {
    const match = word.match(/^([\w.\/]+)(!=|<=|>=|=|<|>|~)(.+)$/), low = word.toLowerCase();
    const holds = (r) => Object.values(r).some((v) => typeof v === "string" && v.toLowerCase().includes(low));
    if (!match || (!have.has(match[1]) && BOARD.rows.some(holds))) {  // width=64 may be part of a name
      tests.push(holds);
      continue;
    }
    const [, key, sign, value] = match, number = Number(value);
    if (!have.has(key)) { el("problem").textContent = `${key}: no such column`; continue; }
    if (sign === "~") {
      let pattern = null;
      try { pattern = new RegExp(value); } catch { el("problem").textContent = `${value}: not a regular expression`; continue; }
      tests.push((r) => known(r[key]) && pattern.test(String(r[key])));
      continue;
    }
    const compare = { "=": (a, b) => a === b, "!=": (a, b) => a !== b, "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b }[sign];
    tests.push((r) => {
      const v = r[key];
      if (!known(v)) return sign === "!=";
      if (typeof v === "number" && !Number.isNaN(number)) return compare(v, number);
      return compare(String(v).toLowerCase(), value.toLowerCase());
    });
  }
  return tests;
}

function order(a, b) {
  const x = a[state.sort], y = b[state.sort];
  if (!known(x)) return known(y) ? 1 : 0;  // the unknown last, either way
  if (!known(y)) return -1;
  const sign = state.down ? -1 : 1;
  if (typeof x === "number" && typeof y === "number") return sign * (x - y);
  return sign * natural(x, y);
}

const bad = (r) => BAD.includes(r.status);

function select() {
  const tests = conditions(state.filter);
  visible = BOARD.rows.filter((r) => tests.every((t) => t(r))).sort(order);
  const ended = visible.filter(bad).length;
  visible = [...visible.filter((r) => !bad(r)), ...visible.filter(bad)];
  el("count").textContent = `${visible.length} of ${BOARD.rows.length} runs` + (ended ? `, ${ended} failed` : "") + (state.pins.size ? `, ${state.pins.size} pinned` : "");
  warn();
}

function warn() {  // what makes the shown runs hard to compare, as `experiments compare` says it
  const notes = [];
  for (const [key, meaning] of Object.entries(BOARD.must_agree)) {
    const groups = new Map();
    for (const r of visible) if (known(r[key])) groups.set(r[key], [...(groups.get(r[key]) ?? []), r.name]);
    if (groups.size < 2) continue;
    const note = document.createElement("div"), button = document.createElement("button");
    const said = [...groups].slice(0, 4).map(([v, names]) => `${v}: ${names.length === 1 ? names[0] : `${names.length} runs`}`).join("; ");
    note.textContent = `${key} differs, so these runs are ${meaning} (${said}${groups.size > 4 ? "; …" : ""}) `;
    button.textContent = "colour by it";
    button.onclick = () => { el("color").value = key; draw(); };
    note.append(button);
    notes.push(note);
  }
  el("notes").replaceChildren(...notes);
}

// ---- Colour ----

function theme() { return state.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"); }

function ramp(share) {
  const stops = RAMPS[theme()], at = Math.min(Math.max(share, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(at), stops.length - 2);
  const part = (c, k) => parseInt(c.slice(1 + 2 * k, 3 + 2 * k), 16);
  return "rgb(" + [0, 1, 2].map((k) => Math.round(part(stops[i], k) + (at - i) * (part(stops[i + 1], k) - part(stops[i], k)))) + ")";
}

function palette() {
  const key = el("color").value, names = NAMED[theme()], grey = GREYS[theme()], rows = BOARD.rows.filter((r) => known(r[key]) && !(bad(r) && isNumber(key)));  // a failed run has 0 FLOPs
  let legend = [], of = () => ramp(0.55);
  if (key && rows.length) {
    const values = [...new Set(rows.map((r) => r[key]))];
    if (isNumber(key) && values.length > 1) {
      const low = Math.min(...values), high = Math.max(...values), log = low > 0 && high > 5 * low, f = log ? Math.log : (v) => v;
      const share = (v) => (f(v) - f(low)) / (f(high) - f(low));
      legend = [0, 0.25, 0.5, 0.75, 1].map((s) => [ramp(s), s === 0 ? text(key, low) : s === 1 ? text(key, high) : ""]);
      of = (r) => (typeof r[key] === "number" ? ramp(share(r[key])) : grey);
    } else {
      const words = values.map(String).sort(natural);
      legend = words.slice(0, names.length).map((w, i) => [names[i], w]);
      if (words.length > names.length) legend.push([grey, `${words.length - names.length} more`]);
      of = (r) => (known(r[key]) ? names[words.indexOf(String(r[key]))] ?? grey : grey);
    }
  }
  if (state.pins.size) {
    legend = [...state.pins].map(([name, slot]) => [names[slot % names.length], name]);
    return { legend, of: (r) => (state.pins.has(r.name) ? names[state.pins.get(r.name) % names.length] : grey), plain: of };
  }
  return { legend, of, plain: of };
}

function pin(name) {
  if (state.pins.has(name)) state.pins.delete(name);
  else {
    const taken = new Set(state.pins.values());
    let slot = 0;
    while (taken.has(slot)) slot++;
    state.pins.set(name, slot);
  }
  draw();
}

// ---- Table ----

function drawTable() {
  const paint = palette();
  el("legend").replaceChildren(...paint.legend.map(([colour, words]) => {
    const item = document.createElement("span"), dot = document.createElement("span");
    dot.className = "swatch";
    dot.style.background = colour;
    item.append(dot, words);
    return item;
  }));
  const head = document.createElement("tr");
  head.append(document.createElement("th"));
  for (const key of state.shown) {
    const th = document.createElement("th");
    th.textContent = key;
    th.tabIndex = 0;
    th.dataset.key = key;
    th.className = isNumber(key) ? "num" : "";
    if (key === state.sort) {
      const mark = document.createElement("span");
      mark.className = "dir";
      mark.textContent = state.down ? " ▼" : " ▲";
      th.append(mark);
      th.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    }
    const sort = () => { state.down = key === state.sort ? !state.down : false; state.sort = key; draw(); };
    th.onclick = sort;
    th.onkeydown = (e) => { if (e.key === "Enter") sort(); };
    head.append(th);
  }
  el("head").replaceChildren(head);
  const bodies = { body: document.createDocumentFragment(), failed: document.createDocumentFragment() };
  const numeric = new Set(state.shown.filter(isNumber));
  for (const row of visible) bodies[bad(row) ? "failed" : "body"].append(rowOf(row, paint, numeric));
  const ended = bodies.failed.childElementCount;
  if (ended) {
    const tr = document.createElement("tr"), th = document.createElement("th");
    th.colSpan = state.shown.length + 1;
    th.textContent = `${ended} run${ended > 1 ? "s" : ""} that failed or stopped: in no band, no slice and no law`;
    tr.append(th);
    bodies.failed.prepend(tr);
  }
  el("body").replaceChildren(bodies.body);
  el("failed").replaceChildren(bodies.failed);
}

function rowOf(row, paint, numeric) {
  const tr = document.createElement("tr"), first = document.createElement("td"), button = document.createElement("button");
  tr.dataset.run = row.name;
  tr.className = (state.pins.has(row.name) ? "pinned " : "") + (state.open === row.name ? "open" : "");
  button.textContent = state.pins.has(row.name) ? "★" : "☆";
  button.title = "pin (p)";
  button.setAttribute("aria-pressed", state.pins.has(row.name));
  first.className = "pin";
  first.append(button);
  tr.append(first);
  for (const key of state.shown) {
    const td = document.createElement("td");
    td.textContent = text(key, row[key]);
    if (known(row[key])) td.title = row[key];
    td.className = key === "name" ? "run" : numeric.has(key) ? "num" : key === "status" ? row.status : "";
    if (key === "name") {
      const dot = document.createElement("span");
      dot.className = "swatch";
      dot.style.background = paint.of(row);
      td.prepend(dot);
    }
    tr.append(td);
  }
  return tr;
}

function rowAt(e) { return e.target.closest("tr[data-run]")?.dataset.run ?? null; }

for (const id of ["body", "failed"]) {
  el(id).addEventListener("pointerover", (e) => hover(rowAt(e)));
  el(id).addEventListener("pointerleave", () => hover(null));
  el(id).addEventListener("click", (e) => {
    const name = rowAt(e);
    if (name === null) return;
    e.target.closest("td.pin") ? pin(name) : openRun(name);
  });
}

let hovered = null;
function hover(name) {
  if (name === hovered) return;
  hovered = name;
  for (const tr of document.querySelectorAll("#tablebox tr[data-run]")) tr.classList.toggle("hover", tr.dataset.run === name);
  const id = el("seeds").checked && name !== null ? BOARD.groups[name] : name;
  plots.curves.highlight(id);
  plots.ends.highlight(name);
}

// ---- Curves ----

const held = new Map();  // run, x, y: typed arrays

function curveOf(name, x, y) {
  const key = JSON.stringify([name, x, y]);
  if (held.has(key)) return held.get(key);
  const curve = BOARD.curves[name];
  let found = null;
  if (curve && curve[x] && curve[y]) {
    const at = curve[x].some((v) => v === null) && !(x in AXES) ? between(curve, x) : curve[x];
    const rows = [];
    for (let i = 0; i < at.length; i++) if (known(at[i]) && known(curve[y][i])) rows.push(i);
    const take = (column) => Float64Array.from(rows, (i) => column[i] ?? NaN);
    const low = curve[`${y}:min`], high = curve[`${y}:max`];
    if (rows.length) found = { x: take(at), y: take(curve[y]), low: low && take(low), high: high && take(high), step: take(curve.step ?? at) };
  }
  held.set(key, found);
  return found;
}

function between(curve, x) {  // a metric along x, read between its records where another metric has one of its own
  const at = curve.tokens ?? curve.step, rows = at.map((_, i) => i).filter((i) => curve[x][i] !== null);
  return at.map((t) => {
    let k = rows.findIndex((i) => at[i] >= t);
    if (k < 0) return null;
    const b = rows[k], a = rows[Math.max(0, k - 1)];
    return at[b] === t || a === b ? curve[x][b] : curve[x][a] + ((t - at[a]) / (at[b] - at[a])) * (curve[x][b] - curve[x][a]);
  });
}

function smooth(x, y, width, log) {  // local straight lines, Gaussian weights in the distance along the axis; as compare.py: smooth
  const u = Float64Array.from(x, log ? Math.log10 : (v) => v), out = new Float64Array(y.length);
  let a = 0, b = 0;
  for (let i = 0; i < u.length; i++) {
    while (u[a] < u[i] - 4 * width) a++;
    while (b < u.length && u[b] <= u[i] + 4 * width) b++;
    let s0 = 0, s1 = 0, s2 = 0, t0 = 0, t1 = 0;
    for (let k = a; k < b; k++) {
      const far = u[k] - u[i], w = Math.exp(-0.5 * (far / width) ** 2);
      if (!Number.isFinite(y[k])) continue;
      s0 += w; s1 += w * far; s2 += w * far * far; t0 += w * y[k]; t1 += w * y[k] * far;
    }
    const spread = s0 * s2 - s1 * s1;
    out[i] = spread > 1e-9 * s0 * s0 * width * width ? (s2 * t0 - s1 * t1) / spread : t0 / s0;
  }
  return out;
}

function axisOf(key, log, domain) {
  return { title: AXES[key] ?? key, log, domain, format: /flops/i.test(key) ? power : undefined };
}

function curveSeries() {
  const x = el("x").value, y = el("y").value, logx = el("logx").checked, paint = palette(), width = +el("smooth").value;
  const lines = visible.map((row) => ({ row, curve: curveOf(row.name, x, y) })).filter((l) => l.curve);
  if (el("seeds").checked) return seedSeries(lines, x, y, logx, paint);
  const wanted = state.pins.size ? state.pins.size : lines.length, banded = el("bands").checked && wanted <= BANDS;
  return lines.map(({ row, curve }) => {
    const pinned = state.pins.has(row.name), back = state.pins.size && !pinned, dots = curve.x.length === 1 || (curve.x.length < 30 && y.startsWith("eval/"));
    const span = logx ? 1 : Math.max(...curve.x) / 4;  // a linear axis counts as four decades
    const line = width > 0 && x in AXES && !y.startsWith("eval/") ? smooth(curve.x, curve.y, width * span, logx) : curve.y;
    return {
      id: row.name, name: row.name, x: curve.x, y: line, faint: line === curve.y ? null : curve.y,
      ...(banded && !back && curve.low ? { low: curve.low, high: curve.high } : {}),
      color: paint.of(row), alpha: back ? 0.35 : 0.9, width: pinned ? 2 : lines.length > 200 ? 0.8 : 1.3, front: pinned,
      dash: bad(row) ? [4, 3] : Math.floor((state.pins.get(row.name) ?? 0) / 8) ? [8, 3] : undefined, dots: dots ? 2.2 : 0,
      text: (i) => {
        const spread = curve.low && curve.low[i] < curve.high[i] ? ` [${precise(curve.low[i])}, ${precise(curve.high[i])}]` : "";
        return `${AXES[x] ?? x} ${power(curve.x[i])} · ${y} ${precise(curve.y[i])}${spread}`;
      },
    };
  });
}

const empty = (otherwise) => (!BOARD.rows.length ? "no runs here yet" : !visible.length ? "no run meets the filter" : otherwise);
const precise = (v) => (Math.abs(v) >= 1e4 || (v !== 0 && Math.abs(v) < 1e-3) ? power(v) : Math.abs(v) < 10 ? v.toFixed(4) : String(+v.toPrecision(5)));

function seedSeries(lines, x, y, logx, paint) {  // mean and standard deviation over runs that differ in seeds only
  const groups = new Map();
  for (const l of lines) if (!bad(l.row)) groups.set(BOARD.groups[l.row.name], [...(groups.get(BOARD.groups[l.row.name]) ?? []), l]);
  return [...groups].map(([id, members]) => {
    const low = Math.max(...members.map((m) => m.curve.x[0])), high = Math.min(...members.map((m) => m.curve.x.at(-1)));
    const grid = Float64Array.from({ length: 160 }, (_, i) => (logx && low > 0 ? low * (high / low) ** (i / 159) : low + ((high - low) * i) / 159));
    const read = members.map((m) => grid.map((g) => interpolate(m.curve.x, m.curve.y, g)));
    const n = read.length, mean = grid.map((_, i) => read.reduce((s, r) => s + r[i], 0) / n);
    const sd = grid.map((_, i) => (n > 1 ? Math.sqrt(read.reduce((s, r) => s + (r[i] - mean[i]) ** 2, 0) / (n - 1)) : 0));
    const first = members[0].row, name = BOARD.labels[id] || first.name, pinned = members.some((m) => state.pins.has(m.row.name));
    return {
      id, name: `${name} (${n} run${n > 1 ? "s" : ""})`, x: grid, y: mean, color: paint.of(members.find((m) => state.pins.has(m.row.name))?.row ?? first), width: 1.6, always: true, front: pinned,
      ...(n > 1 ? { low: mean.map((m, i) => m - sd[i]), high: mean.map((m, i) => m + sd[i]), bandAlpha: 0.22 } : {}),
      text: (i) => `${AXES[x] ?? x} ${power(grid[i])} · ${y} ${precise(mean[i])}` + (n > 1 ? ` ± ${precise(sd[i])} (sd of ${n} seeds)` : ""),
    };
  });
}

function interpolate(xs, ys, at) {
  let a = 0, b = xs.length - 1;
  while (b - a > 1) { const m = (a + b) >> 1; xs[m] <= at ? (a = m) : (b = m); }
  return xs[b] === xs[a] ? ys[a] : ys[a] + ((at - xs[a]) / (xs[b] - xs[a])) * (ys[b] - ys[a]);
}

// ---- Ends: scatter, slices of equal compute, law ----

function lawPoints() {
  return visible.filter((r) => r.status === "done" && [r.n_params, r.n_tokens, r.loss].every((v) => v > 0))
    .map((r) => ({ name: r.name, row: r, n: r.n_params, d: r.n_tokens, c: r.flops > 0 ? r.flops : 6 * r.n_params * r.n_tokens, loss: r.loss }));
}

function tip(p) { return `N ${short(p.n)} · D ${short(p.d)} · C ${power(p.c)} · loss ${p.loss.toFixed(4)}`; }

function endsContent() {
  const view = el("view").value, paint = palette();
  const dots = (points, x, y, say) => points.map((p) => ({
    id: p.row.name, name: p.row.name, x: [x(p)], y: [y(p)], color: paint.of(p.row), line: false, dots: 4, hollow: bad(p.row), front: state.pins.has(p.row.name), text: () => say(p),
  }));
  for (const id of ["sx", "sy", "slogx", "slogy"]) el(id).closest(".pair").hidden = view !== "ends";
  if (view === "isoflop") return isoflopContent(dots);
  if (view === "law") return lawContent(dots);
  const x = el("sx").value, y = el("sy").value;
  const rows = visible.filter((r) => Number.isFinite(r[x]) && Number.isFinite(r[y]) && (!el("slogx").checked || r[x] > 0) && (!el("slogy").checked || r[y] > 0)).map((row) => ({ row }));
  el("say").textContent = rows.some((p) => bad(p.row)) ? "hollow: failed runs" : "";
  return { series: dots(rows, (p) => p.row[x], (p) => p.row[y], (p) => `${x} ${text(x, p.row[x])} · ${y} ${text(y, p.row[y])}`),
    x: axisOf(x, el("slogx").checked, state.szoom?.x), y: axisOf(y, el("slogy").checked, state.szoom?.y), label: `${y} against ${x}, a dot for each run`, nothing: empty("these runs lack one of the two") };
}

function isoflopContent(dots) {
  const points = lawPoints(), slices = slicesOf(points), series = [];
  const colour = (c) => ramp(slices.length > 1 ? Math.log(c / slices[0].c) / Math.log(slices.at(-1).c / slices[0].c) : 0.6);
  for (const s of slices) {
    series.push({ guide: true, x: s.curve.x, y: s.curve.y, color: colour(s.c), width: 1.4 });
    series.push(...dots(s.points, (p) => p.n, (p) => p.loss, tip).map((d) => ({ ...d, color: state.pins.size ? d.color : colour(s.c) })));
    if (s.best) series.push({ id: `minimum ${s.c}`, name: `minimum at ${power(s.c)} FLOPs`, x: [s.best.n], y: [s.best.loss], color: NAMED[theme()][0], line: false, dots: 5, shape: "diamond", text: () => `N* ${short(s.best.n)} · loss ${s.best.loss.toFixed(4)}` });
  }
  const a = exponentOf(slices), inside = slices.filter((s) => s.best).length;
  el("say").textContent = a === null ? "" : `N* ∝ C^${a.toFixed(3)} through ${inside} minima of ${slices.length} slices; interval: experiments fit --law isoflop`;
  return { series, x: { title: "parameters N", log: true, domain: state.szoom?.x }, y: { title: "loss", log: false, domain: state.szoom?.y },
    label: "loss against parameters along slices of equal compute", nothing: "needs done runs of three sizes or more at equal compute" };
}

function lawContent(dots) {
  const points = lawPoints(), t = new Set(points.map((p) => p.n)).size >= 3 && new Set(points.map((p) => p.d)).size >= 3 ? fitLaw(points, 1e-3) : null, series = [];
  if (t) {
    const sizes = [...new Set(points.map((p) => p.n))].sort((a, b) => a - b), low = Math.min(...points.map((p) => p.d)), high = Math.max(...points.map((p) => p.d));
    const every = Math.max(1, Math.ceil(sizes.length / 7));
    sizes.filter((_, i) => i % every === 0).forEach((n) => {
      const grid = [...Array(40)].map((_, i) => low * (high / low) ** (i / 39));
      series.push({ guide: true, x: grid, y: grid.map((d) => lawLoss(t, n, d)), color: ramp(Math.log(n / sizes[0]) / Math.log(sizes.at(-1) / sizes[0])), width: 1.2 });
    });
    series.push(...dots(points, (p) => p.d, (p) => p.loss, (p) => `${tip(p)} · law ${lawLoss(t, p.n, p.d).toFixed(4)}`).map((d, i) => ({ ...d, color: state.pins.size ? d.color : ramp(Math.log(points[i].n / sizes[0]) / Math.log(sizes.at(-1) / sizes[0])) })));
    const rms = Math.sqrt(points.reduce((s, p) => s + Math.log(lawLoss(t, p.n, p.d) / p.loss) ** 2, 0) / points.length);
    el("say").textContent = `E ${t.E.toFixed(3)}, α ${t.alpha.toFixed(3)}, β ${t.beta.toFixed(3)}, so N* ∝ C^${(t.beta / (t.alpha + t.beta)).toFixed(3)}; residual ${(100 * rms).toFixed(2)} %; intervals: experiments fit`;
  } else el("say").textContent = "";
  return { series, x: { title: "training tokens D", log: true, domain: state.szoom?.x }, y: { title: "loss", log: true, domain: state.szoom?.y },
    label: "loss against tokens, and the fitted law for some sizes", nothing: "needs six done runs of three sizes and three token counts" };
}

// ---- One run ----

async function openRun(name) {
  state.open = state.open === name ? null : name;
  remember();
  for (const tr of document.querySelectorAll("#tablebox tr[data-run]")) tr.classList.toggle("open", tr.dataset.run === state.open);
  const box = el("run"), row = rowsByName.get(state.open);
  box.hidden = !row;
  if (!row) return;
  const add = (tag, words, name) => { const node = document.createElement(tag); node.textContent = words; if (name) node.className = name; box.append(node); return node; };
  const table = (rows, head) => {
    const node = document.createElement("table");
    for (const [i, cells] of (head ? [head, ...rows] : rows).entries()) {
      const tr = document.createElement("tr");
      for (const cell of cells) { const td = document.createElement(head && i === 0 ? "th" : "td"); td.textContent = cell; tr.append(td); }
      node.append(tr);
    }
    box.append(node);
  };
  box.replaceChildren();
  add("h2", row.name);
  const close = add("button", "close", "close");
  close.title = "Escape";
  close.onclick = () => openRun(state.open);
  add("div", row.status + (row.reason ? `: ${row.reason}` : ""), row.status);
  const facts = ["n_params", "n_tokens", "tokens_per_param", "flops", ...new Set(["loss", "bpb", BOARD.judge]), "step", "steps", "seconds", "tokens_per_sec", "device", "commit"];
  table(facts.filter((k) => known(row[k])).map((k) => [k, text(k, row[k])]));
  const others = state.pins.size ? [...state.pins.keys()].filter((n) => n !== name).map((n) => rowsByName.get(n)).filter(Boolean).slice(0, 3) : [];
  const configs = columns().filter((k) => k === "seed" || (k.includes(".") && !k.includes("/")));
  const same = (a, b) => String(a ?? "") === String(b ?? "");
  if (others.length) {
    add("h3", "config: what differs from pinned runs");
    table(configs.filter((k) => others.some((o) => !same(o[k], row[k]))).map((k) => [k, text("", row[k]), ...others.map((o) => text("", o[k]))]), ["", "this run", ...others.map((o) => o.name)]);
  } else {
    add("h3", "config: what differs over the shown runs");
    table(configs.filter((k) => visible.some((o) => known(o[k]) && !same(o[k], row[k]))).map((k) => {
      const rest = [...new Set(visible.filter((o) => !same(o[k], row[k])).map((o) => text("", o[k])))];
      return [k, text("", row[k]), rest.slice(0, 6).join(", ") + (rest.length > 6 ? ", …" : "")];
    }), ["", "this run", "others"]);
  }
  let details = BOARD.details[row.name];
  if (!details && BOARD.live) {
    try { details = await (await fetch(`run.json?name=${encodeURIComponent(row.name)}`)).json(); } catch { details = null; }
    if (state.open !== name) return;
  }
  if (!details) return;
  add("h3", "checkpoints");
  add("div", details.checkpoints.length ? `steps ${details.checkpoints.join(", ")}` : "none");
  if (details.samples.length) add("h3", "samples");
  for (const s of details.samples) add("pre", `step ${s.step}: ${s.prompt}▸${s.text}`);
  if (details.log.length) { add("h3", "end of the log"); add("pre", details.log.join("\n")); }
}

// ---- State in the address ----

function remember() {
  const words = new URLSearchParams(), put = (k, v, usual) => { if (String(v) !== String(usual)) words.set(k, v); };
  for (const id of CONTROLS) put(id, el(id).type === "checkbox" ? Number(el(id).checked) : el(id).value, started[id]);
  put("filter", state.filter, "");
  put("sort", (state.down ? "-" : "") + state.sort, "name");
  put("pins", [...state.pins].map(([n, slot]) => `${slot}:${n}`).join("\n"), "");
  put("shown", state.shown.join(" "), BOARD.shown.join(" "));
  put("run", state.open ?? "", "");
  put("theme", state.theme, "");
  put("zoom", state.zoom ? JSON.stringify(state.zoom) : "", "");
  put("szoom", state.szoom ? JSON.stringify(state.szoom) : "", "");
  history.replaceState(null, "", `#${words}`);
}

function recall() {
  const words = new URLSearchParams(location.hash.slice(1)), get = (k, usual) => words.get(k) ?? usual;
  for (const id of CONTROLS) if (words.has(id)) el(id).type === "checkbox" ? (el(id).checked = words.get(id) === "1") : (el(id).value = words.get(id));
  state.filter = get("filter", "");
  el("filter").value = state.filter;
  const sort = get("sort", "name");
  state.down = sort.startsWith("-");
  state.sort = state.down ? sort.slice(1) : sort;
  for (const line of get("pins", "").split("\n").filter(Boolean)) { const at = line.indexOf(":"); state.pins.set(line.slice(at + 1), Number(line.slice(0, at))); }
  state.shown = get("shown", BOARD.shown.join(" ")).split(" ").filter(Boolean);
  state.theme = get("theme", "");
  const domain = (text) => { try { return JSON.parse(text || "null"); } catch { return null; } };
  state.zoom = domain(get("zoom", ""));
  state.szoom = domain(get("szoom", ""));
  return get("run", null);
}

// ---- Drawing and controls ----

function drawCharts() {
  const x = el("x").value, y = el("y").value;
  plots.curves.set({ series: curveSeries(), x: axisOf(x, el("logx").checked, state.zoom?.x), y: axisOf(y, el("logy").checked, state.zoom?.y),
    label: `${y} against ${x}, a line for each run`, nothing: empty("these runs have no record of one of the two") });
  plots.ends.set(endsContent());
  el("unzoom").hidden = !state.zoom && !state.szoom;
  remember();
}

function draw() {
  rowsByName = new Map(BOARD.rows.map((r) => [r.name, r]));
  document.documentElement.dataset.theme = state.theme;
  if (!state.theme) delete document.documentElement.dataset.theme;
  select();
  drawTable();
  drawCharts();
}

function options(id, keys, chosen) {
  const before = el(id).value;
  el(id).replaceChildren(...keys.map((k) => new Option(k || "one colour", k)));
  const wanted = keys.includes(before) && before ? before : chosen.find((k) => keys.includes(k));
  if (wanted !== undefined) el(id).value = wanted;
}

function fillControls() {
  numbers.clear();
  held.clear();
  const keys = [...new Set(Object.values(BOARD.curves).flatMap(Object.keys))].filter((k) => !/:(min|max)$/.test(k) && k !== "records");
  const metrics = keys.filter((k) => !(k in AXES)), numeric = columns().filter(isNumber);
  options("x", [...Object.keys(AXES).filter((k) => keys.includes(k)), ...metrics], ["tokens"]);
  options("y", metrics, [BOARD.curve, "train/loss", "eval/val/loss"]);
  // What differs between runs, seeds aside, comes first: all of one budget would be one colour and one column.
  const differs = (key) => new Set(BOARD.rows.map((r) => r[key]).filter(known)).size > 1;
  const swept = BOARD.shown.filter((k) => k.includes(".") && differs(k));
  options("sx", numeric, [...["flops", "n_params"].filter(differs), ...swept, "flops"]);
  options("sy", numeric, [BOARD.judge, "loss", "train/loss"]);
  options("color", ["", ...columns()], [...["flops"].filter(differs), ...swept, "flops", "status"]);
  const boxes = columns().map((key) => {
    const label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox";
    box.checked = state.shown.includes(key);
    box.onchange = () => { state.shown = box.checked ? [...state.shown, key] : state.shown.filter((k) => k !== key); drawTable(); remember(); };
    label.append(box, ` ${key}`);
    return label;
  });
  if (el("columns").children.length !== boxes.length) el("columns").replaceChildren(...boxes);
}

async function refresh() {
  try {
    const answer = await fetch(`ledger.json?since=${BOARD.version}`, { cache: "no-store" });
    const fresh = await answer.json();
    el("age").classList.remove("stale");
    el("age").textContent = `live, read at ${new Date().toLocaleTimeString()}`;
    if (fresh.version === BOARD.version) return;
    const { rows, curves, names, ...rest } = fresh, changed = new Map(rows.map((r) => [r.name, r]));
    const all = new Map([...BOARD.rows.map((r) => [r.name, r]), ...changed]);
    Object.assign(BOARD, rest, { rows: names.map((n) => all.get(n)).filter(Boolean), curves: { ...BOARD.curves, ...curves } });
    fillControls();
    draw();
  } catch {
    el("age").classList.add("stale");
    el("age").textContent = "the server is gone; these are the last numbers";
  }
}

function keys(e) {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName);
  if (e.key === "Escape") {
    if (!el("help").hidden) el("help").hidden = true;
    else if (typing) e.target.blur();
    else if (state.open) openRun(state.open);
    else { state.zoom = state.szoom = null; drawCharts(); }
    return;
  }
  if (typing) return;
  const names = visible.map((r) => r.name), at = names.indexOf(hovered ?? state.open);
  const step = (by) => {
    const next = names[Math.min(Math.max(at + by, 0), names.length - 1)];
    if (next === undefined) return;
    hover(next);
    [...document.querySelectorAll("#tablebox tr[data-run]")].find((tr) => tr.dataset.run === next)?.scrollIntoView({ block: "nearest" });
  };
  const act = {
    "/": () => el("filter").focus(), j: () => step(1), k: () => step(-1), ArrowDown: () => step(1), ArrowUp: () => step(-1),
    Enter: () => hovered && openRun(hovered), p: () => (hovered ?? state.open) && pin(hovered ?? state.open), u: () => { state.pins.clear(); draw(); },
    b: () => el("bands").click(), s: () => el("seeds").click(), d: () => el("theme").click(), z: () => { state.zoom = state.szoom = null; drawCharts(); },
    v: () => { el("view").selectedIndex = (el("view").selectedIndex + 1) % el("view").options.length; state.szoom = null; drawCharts(); },
    "?": () => { el("help").hidden = !el("help").hidden; },
  }[e.key];
  if (act && !(e.key === "Enter" && e.target.tagName !== "BODY")) { act(); e.preventDefault(); }
}

let waiting = null;
el("filter").oninput = (e) => { clearTimeout(waiting); waiting = setTimeout(() => { state.filter = e.target.value; draw(); }, 60); };
for (const id of ["x", "y", "logx", "logy"]) el(id).addEventListener("input", () => { state.zoom = null; drawCharts(); });
for (const id of ["sx", "sy", "slogx", "slogy", "view"]) el(id).addEventListener("input", () => { state.szoom = null; drawCharts(); });
for (const id of ["smooth", "bands", "seeds"]) el(id).addEventListener("input", drawCharts);
el("color").oninput = draw;
el("unzoom").onclick = () => { state.zoom = state.szoom = null; drawCharts(); };
el("theme").onclick = () => { state.theme = theme() === "dark" ? "light" : "dark"; draw(); };
el("keys").onclick = () => { el("help").hidden = !el("help").hidden; };
document.addEventListener("keydown", keys);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
plots.curves = new Plot(el("curves"), {
  hover: (id) => { hovered = el("seeds").checked ? null : id; for (const tr of document.querySelectorAll("#tablebox tr[data-run]")) tr.classList.toggle("hover", el("seeds").checked ? id !== null && BOARD.groups[tr.dataset.run] === id : tr.dataset.run === id); if (!el("seeds").checked) plots.ends.highlight(id); },
  pick: (id) => { if (!el("seeds").checked) openRun(id); }, zoom: (d) => { state.zoom = d; drawCharts(); },
});
plots.ends = new Plot(el("ends"), {
  hover: (id) => { hovered = rowsByName.has(id) ? id : null; for (const tr of document.querySelectorAll("#tablebox tr[data-run]")) tr.classList.toggle("hover", tr.dataset.run === id); plots.curves.highlight(hovered); },
  pick: (id) => { if (rowsByName.has(id)) openRun(id); }, zoom: (d) => { state.szoom = d; drawCharts(); },
});
fillControls();
started = Object.fromEntries(CONTROLS.map((id) => [id, el(id).type === "checkbox" ? Number(el(id).checked) : el(id).value]));
const opened = recall();
draw();
if (opened) openRun(opened);
if (BOARD.live) {
  el("age").classList.add("live");
  setInterval(refresh, 1000 * BOARD.live);
}
