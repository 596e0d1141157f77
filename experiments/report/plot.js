"use strict";
// A chart on a canvas: lines, bands and dots on linear or log axes, with hover, zoom and the page's colours.

const SANS = '"Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif';
const SUPERSCRIPTS = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const MARGIN = { left: 62, right: 14, top: 8, bottom: 42 };
const REACH = 36;  // pixels from the pointer within which something is hovered

// ---- Numbers ----

function short(v) {  // 1.2M
  if (v === 0) return "0";
  for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(v) >= 0.9995 * unit) return +(v / unit).toPrecision(3) + letter;
  return String(+v.toPrecision(4));
}

function power(v) {  // 3×10¹⁸; numbers from 0.0001 to 9999 as they are
  if (v === 0 || (Math.abs(v) >= 1e-4 && Math.abs(v) < 1e4)) return String(+v.toPrecision(4));
  const [mantissa, exponent] = v.toExponential(2).split("e");
  const tail = "10" + [...String(Number(exponent))].map((c) => SUPERSCRIPTS[c]).join("");
  return Number(mantissa) === 1 ? tail : `${Number(mantissa)}×${tail}`;
}

function logTicks(low, high, most = 6) {  // as experiments/report/charts.py: log_ticks
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const decades = [...Array(last - first + 1).keys()].map((i) => first + i);
  for (const mantissas of [[1, 2, 3, 4, 5, 6, 8], [1, 2, 5], [1, 3], [1]]) {
    const found = decades.flatMap((d) => mantissas.map((m) => Number(`${m}e${d}`))).filter((v) => v >= low && v <= high);
    if ((found.length >= 3 && found.length <= most) || (mantissas.length < 3 && found.length === 2)) return found;
  }
  if (high < 10 * low) return linearTicks(low, high, most);
  const stride = Math.ceil(decades.length / most);
  return decades.filter((d) => d % stride === 0).map((d) => Number(`1e${d}`)).filter((v) => v >= low && v <= high);
}

function linearTicks(low, high, most = 6) {
  const base = 10 ** Math.floor(Math.log10((high - low) / most));
  for (const factor of [1, 2, 2.5, 5, 10, 20]) {
    const step = factor * base, found = [];
    for (let k = Math.ceil(low / step - 1e-9); k <= Math.floor(high / step + 1e-9); k++) found.push(Number((k * step).toPrecision(10)));
    if (found.length <= most) return found;
  }
  return [low, high];
}

function alike(values) {  // as many decimals as the one that needs most, at most 4
  const decimals = Math.max(0, ...values.map((v) => (String(+v.toPrecision(10)).split(".")[1] ?? "").length));
  return values.map((v) => v.toFixed(Math.min(decimals, 4)).replace("-", "−"));
}

function tickTexts(ticks, format) {
  if (format) return ticks.map(format);
  const size = Math.max(...ticks.map(Math.abs), 0), least = Math.min(...ticks.map((t) => Math.abs(t) || Infinity));
  return size < 1000 && least >= 1e-3 ? alike(ticks) : ticks.map(size >= 1000 && size < 1e15 ? short : power);
}

// ---- The chart ----

class Plot {
  // box: an element with a size. on: {hover(id or null), pick(id), zoom(domains or null)}.
  constructor(box, on = {}) {
    this.box = box;
    this.on = on;
    box.replaceChildren();
    box.classList.add("plot");
    const make = (tag, name) => { const node = document.createElement(tag); node.className = name; box.append(node); return node; };
    this.base = make("canvas", "base");
    this.over = make("canvas", "over");
    this.tip = make("div", "tip");
    this.empty = make("div", "nothing");
    this.tip.hidden = true;
    this.over.setAttribute("role", "img");
    this.content = { series: [], x: {}, y: {} };
    this.hovered = null;
    this.drag = null;
    this.over.addEventListener("pointermove", (e) => this.moved(e));
    this.over.addEventListener("pointerleave", () => { if (!this.drag) this.show(null); });
    this.over.addEventListener("pointerdown", (e) => this.pressed(e));
    this.over.addEventListener("pointerup", (e) => this.released(e));
    this.over.addEventListener("dblclick", () => this.on.zoom?.(null));
    new ResizeObserver(() => this.draw()).observe(box);
  }

  // content: {series, x: {title, log, format, domain}, y, label, nothing}; a series is {id, name, x, y, low, high,
  // text(i), color, width, alpha, dash, line, dots, faint, front}, arrays of one length; low and high make a band.
  set(content) {
    this.content = content;
    this.over.setAttribute("aria-label", content.label ?? "");
    this.draw();
  }

  scale(axis, extent) {
    const { log, domain } = this.content[axis];
    let [low, high] = domain ?? extent;
    if (!domain) {
      if (log) { const m = high > 1.001 * low ? (high / low) ** 0.04 : 1.3; low /= m; high *= m; }
      else { const m = high > low ? 0.04 * (high - low) : Math.abs(high) * 0.1 || 1; low -= m; high += m; }
    }
    const f = log ? Math.log10 : (v) => v, a = f(low), span = f(high) - a;
    const [from, to] = axis === "x" ? [MARGIN.left, this.width - MARGIN.right] : [this.height - MARGIN.bottom, MARGIN.top];
    const at = (v) => from + ((f(v) - a) / span) * (to - from);
    const back = (p) => { const u = a + ((p - from) / (to - from)) * span; return log ? 10 ** u : u; };
    return { low, high, log, at, back, ticks: log ? logTicks(low, high) : linearTicks(low, high) };
  }

  extent(axis) {
    const { log } = this.content[axis], other = axis === "x" ? null : this.content.x.domain;
    let low = Infinity, high = -Infinity;
    for (const s of this.content.series) {
      if (s.guide) continue;
      for (let i = 0; i < s.x.length; i++) {
        if (other && (s.x[i] < other[0] || s.x[i] > other[1])) continue;
        const v = s[axis][i];
        if (!Number.isFinite(v) || (log && v <= 0)) continue;
        if (v < low) low = v;
        if (v > high) high = v;
      }
    }
    return low <= high ? [low, high] : null;
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    this.width = this.box.clientWidth;
    this.height = this.box.clientHeight;
    if (!this.width || !this.height) return;
    for (const canvas of [this.base, this.over]) {
      canvas.width = Math.round(this.width * ratio);
      canvas.height = Math.round(this.height * ratio);
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    const style = getComputedStyle(document.documentElement), color = (name) => style.getPropertyValue(name).trim();
    this.colors = { ink: color("--ink"), soft: color("--soft"), grid: color("--grid"), paper: color("--paper") };
    const extents = [this.extent("x"), this.extent("y")];
    const nothing = !extents[0] || !extents[1];
    this.empty.textContent = nothing ? this.content.nothing ?? "nothing to draw" : "";
    this.empty.hidden = !nothing;
    this.base.hidden = this.over.hidden = nothing;
    if (nothing) { this.xs = null; return; }
    this.xs = this.scale("x", extents[0]);
    this.ys = this.scale("y", extents[1]);
    this.frame();
    const pen = this.base.getContext("2d");
    this.clip(pen);
    for (const s of this.content.series) this.project(s);
    for (const s of this.content.series) if (s.low) this.band(pen, s);
    for (const front of [false, true]) for (const s of this.content.series) if (!!s.front === front) this.stroke(pen, s, s.width ?? 1.2, s.alpha ?? 0.85);
    pen.restore();
    this.overlay();
  }

  frame() {
    const pen = this.base.getContext("2d"), { xs, ys, colors } = this, { x, y } = this.content;
    const left = MARGIN.left, right = this.width - MARGIN.right, top = MARGIN.top, bottom = this.height - MARGIN.bottom;
    pen.font = `11px ${SANS}`;
    pen.lineWidth = 1;
    pen.strokeStyle = colors.grid;
    pen.fillStyle = colors.soft;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    tickTexts(ys.ticks, y.format).forEach((text, i) => {
      const at = Math.round(ys.at(ys.ticks[i])) + 0.5;
      pen.beginPath(); pen.moveTo(left, at); pen.lineTo(right, at); pen.stroke();
      pen.fillText(text, left - 7, at);
    });
    pen.textBaseline = "top";
    pen.textAlign = "center";
    let end = -Infinity;
    tickTexts(xs.ticks, x.format).forEach((text, i) => {
      const at = Math.round(xs.at(xs.ticks[i])) + 0.5, half = pen.measureText(text).width / 2;
      pen.beginPath(); pen.moveTo(at, top); pen.lineTo(at, bottom); pen.stroke();
      if (at - half > end + 6 && at + half < this.width) { pen.fillText(text, at, bottom + 6); end = at + half; }
    });
    pen.strokeStyle = colors.soft;
    pen.beginPath(); pen.moveTo(left, top); pen.lineTo(left, bottom + 0.5); pen.lineTo(right, bottom + 0.5); pen.stroke();
    pen.font = `12px ${SANS}`;
    pen.fillText(x.title ?? "", (left + right) / 2, bottom + 23);
    pen.save();
    pen.translate(9, (top + bottom) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(y.title ?? "", 0, -5);
    pen.restore();
  }

  clip(pen) {
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left, MARGIN.top, this.width - MARGIN.left - MARGIN.right, this.height - MARGIN.top - MARGIN.bottom);
    pen.clip();
  }

  project(s) {
    const n = s.x.length, px = new Float32Array(n), py = new Float32Array(n), { xs, ys } = this;
    let rising = true;
    for (let i = 0; i < n; i++) {
      px[i] = (xs.log && !(s.x[i] > 0)) ? NaN : xs.at(s.x[i]);
      py[i] = (ys.log && !(s.y[i] > 0)) ? NaN : ys.at(s.y[i]);
      if (i && !(px[i] >= px[i - 1])) rising = false;
    }
    s.px = px; s.py = py; s.rising = rising;
  }

  band(pen, s) {
    const edge = (v) => this.ys.at(this.ys.log && !(v > 0) ? this.ys.low : v);
    pen.globalAlpha = s.bandAlpha ?? 0.16;
    pen.fillStyle = s.color;
    let start = 0;  // a gap in the record is a gap in its band
    for (let i = 0; i <= s.x.length; i++) {
      if (i < s.x.length && Number.isFinite(s.low[i]) && Number.isFinite(s.px[i])) continue;
      if (i - start > 1) {
        pen.beginPath();
        for (let k = start; k < i; k++) pen.lineTo(s.px[k], edge(s.high[k]));
        for (let k = i - 1; k >= start; k--) pen.lineTo(s.px[k], edge(s.low[k]));
        pen.fill();
      }
      start = i + 1;
    }
    pen.globalAlpha = 1;
  }

  stroke(pen, s, width, alpha) {
    pen.strokeStyle = pen.fillStyle = s.color;
    pen.lineJoin = "round";
    if (s.faint) {  // the record behind its smoothed line
      pen.globalAlpha = 0.25 * alpha;
      pen.lineWidth = 1;
      this.path(pen, s.px, s.faint.map((v) => this.ys.at(v)));
    }
    pen.globalAlpha = alpha;
    pen.lineWidth = width;
    if (s.line !== false) {
      pen.setLineDash(s.dash ?? []);
      this.path(pen, s.px, s.py);
      pen.setLineDash([]);
    }
    if (s.bar) for (let i = 0; i < s.x.length; i++) { pen.beginPath(); pen.moveTo(this.xs.at(s.bar[0][i]), s.py[i]); pen.lineTo(this.xs.at(s.bar[1][i]), s.py[i]); pen.stroke(); }
    if (s.dots) for (let i = 0; i < s.x.length; i++) this.mark(pen, s, i, s.dots);
    pen.globalAlpha = 1;
  }

  mark(pen, s, i, size) {
    if (!Number.isFinite(s.px[i]) || !Number.isFinite(s.py[i])) return;
    pen.fillStyle = pen.strokeStyle = s.color;
    pen.beginPath();
    if (s.shape === "diamond") {
      const r = 1.35 * size;
      pen.moveTo(s.px[i], s.py[i] - r); pen.lineTo(s.px[i] + r, s.py[i]); pen.lineTo(s.px[i], s.py[i] + r); pen.lineTo(s.px[i] - r, s.py[i]); pen.closePath();
    } else pen.arc(s.px[i], s.py[i], size, 0, 2 * Math.PI);
    s.hollow ? pen.stroke() : pen.fill();
  }

  path(pen, px, py) {
    pen.beginPath();
    let down = false;
    for (let i = 0; i < px.length; i++) {
      if (!Number.isFinite(px[i]) || !Number.isFinite(py[i])) { down = false; continue; }
      down ? pen.lineTo(px[i], py[i]) : pen.moveTo(px[i], py[i]);
      down = true;
    }
    pen.stroke();
  }

  // ---- Hover and zoom ----

  nearest(mx, my) {  // {series, i} of the record whose point or line is nearest
    let best = null, least = REACH * REACH;
    for (const s of this.content.series) {
      if (s.id === undefined || s.guide) continue;
      const { px, py } = s, n = px.length;
      let from = 0, to = n;
      if (s.rising && n > 40) {
        const find = (v) => { let a = 0, b = n; while (a < b) { const m = (a + b) >> 1; px[m] < v ? (a = m + 1) : (b = m); } return a; };
        from = Math.max(0, find(mx - REACH) - 1);
        to = Math.min(n, find(mx + REACH) + 1);
      }
      for (let i = from; i < to; i++) {
        const dx = px[i] - mx, dy = py[i] - my;
        let d = dx * dx + dy * dy, at = i;
        if (s.line !== false && i + 1 < to) {
          const ex = px[i + 1] - px[i], ey = py[i + 1] - py[i], l = ex * ex + ey * ey;
          if (l > 0) {
            const t = Math.min(1, Math.max(0, -(dx * ex + dy * ey) / l)), gx = dx + t * ex, gy = dy + t * ey, g = gx * gx + gy * gy;
            if (g < d) { d = g; at = t < 0.5 ? i : i + 1; }
          }
        }
        if (d < least - 1e-6) { least = d; best = { series: s, i: at }; }
      }
    }
    return best;
  }

  place(e) { const r = this.over.getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top]; }

  moved(e) {
    if (!this.xs) return;
    const [mx, my] = this.place(e);
    if (this.drag) { this.drag.to = [mx, my]; this.overlay(); return; }
    this.show(this.nearest(mx, my));
  }

  show(found) {
    this.found = found;
    const id = found ? found.series.id : null;
    this.tip.hidden = !found;
    if (found) {
      const { series: s, i } = found, { x, y } = this.content;
      const dot = document.createElement("span"), name = document.createElement("b"), words = document.createElement("div");
      dot.className = "swatch";
      dot.style.background = s.color;
      name.textContent = s.name;
      words.textContent = s.text ? s.text(i) : `${x.title} ${power(s.x[i])}, ${y.title} ${+s.y[i].toPrecision(5)}`;
      this.tip.replaceChildren(dot, name, words);
      const right = s.px[i] > this.width / 2;
      this.tip.style.left = right ? "" : `${s.px[i] + 14}px`;
      this.tip.style.right = right ? `${this.width - s.px[i] + 14}px` : "";
      this.tip.style.top = `${Math.max(0, Math.min(s.py[i] - 20, this.height - 60))}px`;
    }
    if (id !== this.hovered) this.on.hover?.(id);
    this.hovered = id;
    this.overlay();
  }

  highlight(id) { this.hovered = id; if (id === null || this.found?.series.id !== id) { this.found = null; this.tip.hidden = true; } this.overlay(); }

  overlay() {
    if (!this.xs) return;
    const pen = this.over.getContext("2d");
    pen.clearRect(0, 0, this.width, this.height);
    this.clip(pen);
    if (this.hovered !== null)
      for (const s of this.content.series) {
        if (s.id !== this.hovered || s.guide || !s.px) continue;
        if (s.low && !s.always) this.band(pen, { ...s, bandAlpha: 0.2 });
        if (s.dots && s.line === false) for (let i = 0; i < s.x.length; i++) this.mark(pen, s, i, s.dots + 2);
        else this.stroke(pen, { ...s, faint: null }, (s.width ?? 1.2) + 1.6, 1);
      }
    if (this.found) {
      const { series: s, i } = this.found;
      pen.beginPath(); pen.arc(s.px[i], s.py[i], 4.5, 0, 2 * Math.PI);
      pen.fillStyle = s.color; pen.fill(); pen.lineWidth = 1.5; pen.strokeStyle = this.colors.paper; pen.stroke();
    }
    if (this.drag) {
      const [x, y, w, h] = this.box4();
      pen.globalAlpha = 0.15; pen.fillStyle = this.colors.soft; pen.fillRect(x, y, w, h); pen.globalAlpha = 1;
      pen.lineWidth = 1; pen.strokeStyle = this.colors.soft; pen.strokeRect(x, y, w, h);
    }
    pen.restore();
  }

  box4() {  // the dragged rectangle; a flat one means all of the other axis
    let [[ax, ay], [bx, by]] = [this.drag.from, this.drag.to];
    if (Math.abs(by - ay) < 12) { ay = MARGIN.top; by = this.height - MARGIN.bottom; }
    else if (Math.abs(bx - ax) < 12) { ax = MARGIN.left; bx = this.width - MARGIN.right; }
    return [Math.min(ax, bx), Math.min(ay, by), Math.abs(bx - ax), Math.abs(by - ay)];
  }

  pressed(e) {
    if (!this.xs || e.button) return;
    const at = this.place(e);
    this.drag = { from: at, to: at };
    this.over.setPointerCapture(e.pointerId);
  }

  released(e) {
    if (!this.drag) return;
    this.drag.to = this.place(e);
    const [[ax, ay], [bx, by]] = [this.drag.from, this.drag.to], [x, y, w, h] = this.box4();
    this.drag = null;
    if (Math.hypot(bx - ax, by - ay) < 6) { if (this.found) this.on.pick?.(this.found.series.id); this.overlay(); return; }
    const inside = (v, a, b) => Math.min(Math.max(v, a), b), { xs, ys } = this;
    const across = [inside(x, MARGIN.left, this.width - MARGIN.right), inside(x + w, MARGIN.left, this.width - MARGIN.right)];
    const along = [inside(y + h, MARGIN.top, this.height - MARGIN.bottom), inside(y, MARGIN.top, this.height - MARGIN.bottom)];
    const whole = Math.abs(by - ay) < 12;
    this.on.zoom?.({ x: across.map(xs.back), y: whole ? null : along.map(ys.back) });
  }
}
