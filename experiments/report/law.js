"use strict";
// Scaling laws in the page: L(N, D) = E + A / N^alpha + B / D^beta, and parabolas through slices of equal compute.
// A point is {n, d, c, loss}. For intervals and more laws: python -m experiments fit.

function lawLoss(t, n, d) { return t.E + t.A * n ** -t.alpha + t.B * d ** -t.beta; }

function huber(r, delta) { const a = Math.abs(r); return a <= delta ? 0.5 * r * r : delta * (a - 0.5 * delta); }

// A and B for given E, alpha, beta: least sum of huber(log predicted - log measured), both at least 0; from
// reweighted linear least squares in the relative residual. Returns {E, A, B, alpha, beta, value}.
function solveScales(points, E, alpha, beta, delta) {
  let A = 0, B = 0, weights = points.map(() => 1);
  for (let round = 0; round < 8; round++) {
    let s11 = 0, s12 = 0, s22 = 0, t1 = 0, t2 = 0;
    points.forEach((p, i) => {
      const u = p.n ** -alpha / p.loss, v = p.d ** -beta / p.loss, y = (p.loss - E) / p.loss, w = weights[i];
      s11 += w * u * u; s12 += w * u * v; s22 += w * v * v; t1 += w * u * y; t2 += w * v * y;
    });
    const det = s11 * s22 - s12 * s12;
    A = det > 1e-14 * s11 * s22 ? (s22 * t1 - s12 * t2) / det : -1;
    B = det > 1e-14 * s11 * s22 ? (s11 * t2 - s12 * t1) / det : -1;
    if (A < 0 || B < 0) {
      const [onlyA, onlyB] = [Math.max(0, t1 / s11), Math.max(0, t2 / s22)];
      [A, B] = t1 * onlyA > t2 * onlyB ? [onlyA, 0] : [0, onlyB];
    }
    const t = { E, A, B, alpha, beta };
    weights = points.map((p) => {  // so that squares of relative residuals count as Huber's loss of log residuals
      const m = lawLoss(t, p.n, p.d) / p.loss, r = Math.log(m), bend = Math.abs(m - 1) > 1e-9 ? r / (m - 1) : 1;
      return bend * bend * (Math.abs(r) <= delta ? 1 : delta / Math.abs(r));
    });
  }
  const t = { E, A, B, alpha, beta };
  return { ...t, value: points.reduce((sum, p) => sum + huber(Math.log(lawLoss(t, p.n, p.d) / p.loss), delta), 0) };
}

// Least sum of huber(log residual): starts on a grid with A and B solved for, then Levenberg-Marquardt in
// (log A, log B, log E, alpha, beta) with Huber's weights. delta = Infinity is least squares.
function fitLaw(points, delta = Infinity) {
  if (points.length < 6) return null;
  const least = Math.min(...points.map((p) => p.loss));
  const starts = [];
  for (const share of [0.2, 0.5, 0.75, 0.92]) for (const alpha of [0.2, 0.35, 0.55, 0.8]) for (const beta of [0.2, 0.35, 0.55, 0.8])
    starts.push(solveScales(points, share * least, alpha, beta, delta));
  starts.sort((a, b) => a.value - b.value);
  const ends = starts.filter((t) => t.A > 0 && t.B > 0).slice(0, 4).map((t) => polish(points, t, delta));
  return ends.sort((a, b) => a.value - b.value)[0] ?? null;
}

function polish(points, start, delta) {
  const unpack = (q) => ({ A: Math.exp(q[0]), B: Math.exp(q[1]), E: Math.exp(q[2]), alpha: q[3], beta: q[4] });
  const value = (q) => { const t = unpack(q); return points.reduce((sum, p) => sum + huber(Math.log(lawLoss(t, p.n, p.d) / p.loss), delta), 0); };
  let q = [Math.log(start.A), Math.log(start.B), Math.log(start.E), start.alpha, start.beta], damping = 1e-3, now = value(q);
  for (let round = 0; round < 300; round++) {
    const t = unpack(q), H = [...Array(5)].map(() => Array(5).fill(0)), g = Array(5).fill(0);
    for (const p of points) {
      const a = t.A * p.n ** -t.alpha, b = t.B * p.d ** -t.beta, m = t.E + a + b, r = Math.log(m / p.loss);
      const w = Math.abs(r) <= delta ? 1 : delta / Math.abs(r);
      const j = [a / m, b / m, t.E / m, (-a * Math.log(p.n)) / m, (-b * Math.log(p.d)) / m];
      for (let i = 0; i < 5; i++) { g[i] += w * j[i] * r; for (let k = 0; k < 5; k++) H[i][k] += w * j[i] * j[k]; }
    }
    const step = solve(H.map((row, i) => row.map((v, k) => (i === k ? v * (1 + damping) + 1e-300 : v))), g.map((v) => -v));
    const next = step && q.map((v, i) => v + step[i]), then = next ? value(next) : Infinity;
    if (then < now) {
      const done = now - then < 1e-15 * now;
      q = next; now = then; damping = Math.max(damping / 5, 1e-12);
      if (done) break;
    } else if ((damping *= 4) > 1e12) break;
  }
  return { ...unpack(q), value: now };
}

function solve(M, b) {  // Gaussian elimination with pivots
  const n = b.length, A = M.map((row, i) => [...row, b[i]]);
  for (let c = 0; c < n; c++) {
    let p = c;
    for (let r = c + 1; r < n; r++) if (Math.abs(A[r][c]) > Math.abs(A[p][c])) p = r;
    if (!(Math.abs(A[p][c]) > 0)) return null;
    [A[c], A[p]] = [A[p], A[c]];
    for (let r = c + 1; r < n; r++) { const f = A[r][c] / A[c][c]; for (let k = c; k <= n; k++) A[r][k] -= f * A[c][k]; }
  }
  const x = Array(n).fill(0);
  for (let r = n - 1; r >= 0; r--) x[r] = (A[r][n] - A[r].slice(r + 1, n).reduce((s, v, i) => s + v * x[r + 1 + i], 0)) / A[r][r];
  return x;
}

// N that makes the law least at compute c = 6 N D: G (c / 6)^(beta / (alpha + beta)).
function optimalN(t, c) { return ((t.alpha * t.A) / (t.beta * t.B)) ** (1 / (t.alpha + t.beta)) * (c / 6) ** (t.beta / (t.alpha + t.beta)); }

function leastSquares(x, y, degree) {  // coefficients from x^0 up, x centred by the caller
  const M = [...Array(degree + 1)].map((_, i) => [...Array(degree + 1)].map((_, k) => x.reduce((s, v) => s + v ** (i + k), 0)));
  return solve(M, [...Array(degree + 1)].map((_, i) => x.reduce((s, v, k) => s + v ** i * y[k], 0)));
}

// Groups points whose compute agrees within `width` in log, fits a parabola in log N to each of three sizes or more.
function slicesOf(points, width = 0.12) {
  const sorted = [...points].sort((a, b) => a.c - b.c), groups = [];
  for (const p of sorted) {
    const last = groups.at(-1);
    last && Math.log(p.c / last[0].c) < width ? last.push(p) : groups.push([p]);
  }
  return groups.filter((g) => new Set(g.map((p) => p.n)).size >= 3).map((g) => {
    const c = Math.exp(g.reduce((s, p) => s + Math.log(p.c), 0) / g.length);
    const mean = g.reduce((s, p) => s + Math.log(p.n), 0) / g.length;
    const [k0, k1, k2] = leastSquares(g.map((p) => Math.log(p.n) - mean), g.map((p) => p.loss), 2) ?? [0, 0, 0];
    const low = Math.min(...g.map((p) => p.n)), high = Math.max(...g.map((p) => p.n)), best = Math.exp(mean - k1 / (2 * k2));
    const curve = [...Array(50)].map((_, i) => low * (high / low) ** (i / 49));
    const at = (n) => { const u = Math.log(n) - mean; return k0 + k1 * u + k2 * u * u; };
    const inside = k2 > 0 && best > low && best < high;
    return { c, points: g, curve: { x: curve, y: curve.map(at) }, best: inside ? { n: best, loss: at(best) } : null };
  });
}

// Exponent of N* in C through the minima of slices.
function exponentOf(slices) {
  const known = slices.filter((s) => s.best);
  if (known.length < 2) return null;
  const x = known.map((s) => Math.log(s.c)), mean = x.reduce((a, b) => a + b) / x.length;
  return leastSquares(x.map((v) => v - mean), known.map((s) => Math.log(s.best.n)), 1)[1];
}
