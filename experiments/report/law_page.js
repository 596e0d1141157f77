"use strict";
// Sliders for a law over POINTS, [{name, n, d, c, loss}]; law.js fits, plot.js draws.

const el = (id) => document.getElementById(id);
const RAMP = { light: ["#a6dbb9", "#5cc0c0", "#2c9bc4", "#2168ad", "#253494", "#0b1d51"], dark: ["#5b6ee1", "#3f8fd8", "#3fb0c4", "#62c9a2", "#b5dd7b", "#f7ec9a"] };
const least = Math.min(...POINTS.map((p) => p.loss)), lowC = Math.min(...POINTS.map((p) => p.c)), highC = Math.max(...POINTS.map((p) => p.c));
const sizes = [...new Set(POINTS.map((p) => p.n))].sort((a, b) => a - b);
const plots = Object.fromEntries(["curves", "residuals", "path"].map((id) => [id, new Plot(el(id), { hover: (h) => light(h) })]));
let theme = "";

const budget = (share) => lowC * (highC / lowC) ** share;
const dark = () => (theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const delta = () => (el("objective").value === "huber" ? 1e-3 : Infinity);
const inside = (p) => p.c >= 0.9999 * budget(+el("low").value) && p.c <= 1.0001 * budget(+el("high").value);

function colour(n) {
  const stops = RAMP[dark() ? "dark" : "light"], share = sizes.length > 1 ? Math.log(n / sizes[0]) / Math.log(sizes.at(-1) / sizes[0]) : 0.5;
  const at = share * (stops.length - 1), i = Math.min(Math.floor(at), stops.length - 2), part = (c, k) => parseInt(c.slice(1 + 2 * k, 3 + 2 * k), 16);
  return "rgb(" + [0, 1, 2].map((k) => Math.round(part(stops[i], k) + (at - i) * (part(stops[i + 1], k) - part(stops[i], k)))) + ")";
}

let lit = null;
function light(id) { if (id === lit) return; lit = id; for (const p of Object.values(plots)) p.highlight(id); }

function rms(points, t) { return points.length ? Math.sqrt(points.reduce((s, p) => s + Math.log(lawLoss(t, p.n, p.d) / p.loss) ** 2, 0) / points.length) : NaN; }

function draw() {
  const E = +el("E").value, alpha = +el("alpha").value, beta = +el("beta").value, used = POINTS.filter(inside), left = POINTS.filter((p) => !inside(p));
  for (const [id, v] of [["E", E.toFixed(3)], ["alpha", alpha.toFixed(3)], ["beta", beta.toFixed(3)], ["low", power(budget(+el("low").value))], ["high", power(budget(+el("high").value))]]) el(`${id}_out`).textContent = v;
  el("count").textContent = `${used.length} of ${POINTS.length} points in the window`;
  const t = used.length >= 2 ? solveScales(used, E, alpha, beta, delta()) : null;
  const rows = t ? [["A", power(t.A)], ["B", power(t.B)], ["a in N* ∝ Cᵃ", (beta / (alpha + beta)).toFixed(3)], ["residual in the window", `${(100 * rms(used, t)).toFixed(2)} %`],
    ...(left.length ? [["residual outside", `${(100 * rms(left, t)).toFixed(2)} %`]] : []), ["objective", t.value.toPrecision(5)],
    ["N* at the largest C", short(optimalN(t, highC))], ["D*/N* there", short(highC / 6 / optimalN(t, highC) ** 2)]] : [["", "too few points in the window"]];
  el("numbers").replaceChildren(...rows.map((cells) => {
    const tr = document.createElement("tr");
    tr.append(...cells.map((c) => { const td = document.createElement("td"); td.textContent = c; return td; }));
    return tr;
  }));
  const dots = (x, y, say) => POINTS.map((p) => ({ id: p.name, name: p.name, x: [x(p)], y: [y(p)], color: colour(p.n), line: false, dots: 3.4, hollow: !inside(p), alpha: inside(p) ? 0.95 : 0.6, width: 1, text: () => say(p) }));
  const say = (p) => `N ${short(p.n)} · D ${short(p.d)} · C ${power(p.c)} · loss ${p.loss.toFixed(4)}` + (t ? ` · law ${lawLoss(t, p.n, p.d).toFixed(4)}` : "");
  const lowD = Math.min(...POINTS.map((p) => p.d)), highD = Math.max(...POINTS.map((p) => p.d)), every = Math.max(1, Math.ceil(sizes.length / 8));
  const lines = t ? sizes.filter((_, i) => i % every === 0).map((n) => {
    const grid = [...Array(50)].map((_, i) => lowD * (highD / lowD) ** (i / 49));
    return { guide: true, x: grid, y: grid.map((d) => lawLoss(t, n, d)), color: colour(n), width: 1.3 };
  }) : [];
  plots.curves.set({ series: [...lines, ...dots((p) => p.d, (p) => p.loss, say)], x: { title: "training tokens D", log: true }, y: { title: "loss", log: true }, label: "loss against tokens and the law for some sizes" });
  const error = (p) => (t ? 100 * Math.log(p.loss / lawLoss(t, p.n, p.d)) : 0);
  const zero = { guide: true, x: [lowC, highC], y: [0, 0], color: "#888888", dash: [4, 3], width: 1 };
  plots.residuals.set({ series: [zero, ...dots((p) => p.c, error, (p) => `residual ${error(p).toFixed(2)} %`)], x: { title: "compute C (FLOPs)", log: true, format: power }, y: { title: "residual (% of loss)", log: false }, label: "residuals against compute" });
  const grid = [...Array(30)].map((_, i) => lowC * (10 * highC / lowC) ** (i / 29));
  const path = t && t.A > 0 && t.B > 0 ? [{ guide: true, x: grid, y: grid.map((c) => optimalN(t, c)), color: dark() ? "#ff8c3a" : "#d55e00", width: 2 }] : [];
  plots.path.set({ series: [...path, ...dots((p) => p.c, (p) => p.n, say)], x: { title: "compute C (FLOPs)", log: true, format: power }, y: { title: "parameters N, and N*(C)", log: true }, label: "the size that makes the law least at each compute" });
  const words = new URLSearchParams(["E", "alpha", "beta", "low", "high", "objective"].map((id) => [id, el(id).value]));
  history.replaceState(null, "", `#${words}`);
}

function fit() {
  const t = fitLaw(POINTS.filter(inside), delta());
  if (t) for (const id of ["E", "alpha", "beta"]) el(id).value = t[id];
  draw();
}

el("E").min = 0;
el("E").max = least;
el("low").value = 0;
el("high").value = 1;
for (const id of ["E", "alpha", "beta"]) el(id).addEventListener("input", draw);
for (const id of ["low", "high"]) el(id).addEventListener("input", () => {
  if (+el("low").value > +el("high").value) el(id === "low" ? "high" : "low").value = el(id).value;
  draw();
});
el("objective").addEventListener("input", fit);
el("fit").onclick = fit;
el("all").onclick = () => { el("low").value = 0; el("high").value = 1; fit(); };
el("theme").onclick = () => { theme = dark() ? "light" : "dark"; document.documentElement.dataset.theme = theme; draw(); };
const given = new URLSearchParams(location.hash.slice(1));
for (const [id, value] of given) if (["E", "alpha", "beta", "low", "high", "objective"].includes(id)) el(id).value = value;
given.has("E") ? draw() : fit();
