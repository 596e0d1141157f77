"""The mixture of data domains with the least mean loss under fitted laws, among those that are allowed.

Of one loss, or of linear laws, it lies at a corner of what is allowed; of several it is a convex problem,
solved to a bound on what is left.
"""

from collections.abc import Sequence

import numpy as np

from experiments.laws.mixture_laws import Fits

GAP = 1e-6  # of the loss: how far from the optimum a mixture may be
# Mixtures that trees judge, and the best of them that are averaged (RegMix, arXiv:2407.01492 §3).
DRAWN, KEPT = 20_000, 100
STRENGTHS = (0.1, 5.0)  # concentration of the Dirichlet they are drawn from (RegMix)


def corner(slope_RK: np.ndarray, cap_K: np.ndarray) -> np.ndarray:
  """[R, K] of the least slope . r over 0 <= r <= cap, sum r = 1: caps filled from the lowest slope on."""
  order = np.argsort(slope_RK, axis=1, kind="stable")
  caps = cap_K[order]
  before = np.cumsum(caps, axis=1) - caps
  filled = np.clip(1 - before, 0, caps)
  out = np.empty_like(filled)
  np.put_along_axis(out, order, filled, axis=1)
  return out


def nearest(point_RK: np.ndarray, cap_K: np.ndarray) -> np.ndarray:
  """[R, K] of 0 <= r <= cap, sum r = 1, nearest to points: clip(point - tau, 0, cap), whose sum falls in
  tau by straight lines between the points where an entry reaches 0 or its cap."""
  knots = np.sort(np.concatenate([point_RK - cap_K, point_RK], axis=1), axis=1)
  sums = np.clip(point_RK[:, None] - knots[:, :, None], 0, cap_K).sum(2)
  after = np.clip((sums >= 1).sum(1), 1, knots.shape[1] - 1)[:, None]  # sums fall along the knots
  left, right = (np.take_along_axis(knots, after - i, 1) for i in (1, 0))
  high, low = (np.take_along_axis(sums, after - i, 1) for i in (1, 0))
  tau = left + (right - left) * (high - 1) / np.maximum(high - low, 1e-300)
  found = np.clip(point_RK - tau, 0, cap_K)
  return found / found.sum(1, keepdims=True)


def best_mixtures(law: str, fits: Sequence[Fits], cap_K: np.ndarray):
  """(mixtures [R, K], their mean loss over the targets [R], how much lower it may be at most [R]).

  Accelerated projected gradients; the bound is the Frank-Wolfe gap of a convex function.
  """
  t_TRK, c_TR = np.stack([f.t_RK for f in fits]), np.stack([f.c_R for f in fits])
  if law == "linear" or len(fits) == 1:  # monotone in one sum: exact
    r_RK = corner(t_TRK.mean(0), cap_K)
    value = np.mean([np.einsum("rk,rk->r", f.t_RK, r_RK) for f in fits], axis=0)
    if law != "linear":
      value = c_TR[0] + np.exp(value)
    return r_RK, value, np.zeros(len(value))

  def values(r_RK):
    terms_TR = np.exp(np.einsum("trk,rk->tr", t_TRK, r_RK, optimize=True))
    return (c_TR + terms_TR).mean(0), terms_TR

  slope_of = lambda terms_TR: np.einsum("tr,trk->rk", terms_TR, t_TRK, optimize=True) / len(fits)
  r_RK = corner(t_TRK.mean(0), cap_K)
  r_RK = (r_RK + nearest(np.broadcast_to(cap_K, r_RK.shape), cap_K)) / 2
  ahead, at, stiff = r_RK, np.ones(len(r_RK)), np.ones(len(r_RK))
  value, terms = values(r_RK)
  gap = np.full(len(r_RK), np.inf)
  for i in range(3000):
    value_a, terms_a = values(ahead)
    slope = slope_of(terms_a)
    for _ in range(40):  # the step that a quadratic above the function allows
      tried = nearest(ahead - slope / stiff[:, None], cap_K)
      off = tried - ahead
      bound = value_a + (slope * off).sum(1) + stiff / 2 * (off**2).sum(1)
      after, terms_t = values(tried)
      short = after > bound + 1e-13 * np.abs(value_a)
      if not short.any():
        break
      stiff = np.where(short, 2 * stiff, stiff)
    worse = after > value  # begin the acceleration anew
    next_at = np.where(worse, 1.0, (1 + np.sqrt(1 + 4 * at**2)) / 2)
    moved = tried + np.where(worse, 0.0, (at - 1) / next_at)[:, None] * (tried - r_RK)
    r_RK = np.where(worse[:, None], r_RK, tried)
    value, terms = np.where(worse, value, after), np.where(worse, terms, terms_t)
    ahead, at, stiff = np.where(worse[:, None], r_RK, moved), next_at, stiff * 0.95
    if i % 10 == 0:
      slope_here = slope_of(terms)
      gap = (slope_here * (r_RK - corner(slope_here, cap_K))).sum(1)
      if (gap < GAP * value).all():
        break
  return r_RK, value, np.maximum(gap, 0)


def drawn_best(models, weights_NK, cap_K, seed):
  """(mixture [K], mean loss) of trees: the mean of the KEPT best of DRAWN mixtures, as RegMix does."""
  rng = np.random.default_rng(seed)
  base = weights_NK.mean(0)
  strength = np.exp(rng.uniform(*np.log(STRENGTHS), DRAWN))[:, None] * len(base)
  drawn = rng.gamma(np.maximum(strength * base, 1e-3)) + 1e-300
  drawn = nearest(drawn / drawn.sum(1, keepdims=True), cap_K)
  losses = np.mean([m.predict(drawn) for m in models], axis=0)
  best = np.argsort(losses, kind="stable")[:KEPT]
  mixture = drawn[best].mean(0)
  return mixture, float(np.mean([m.predict(mixture[None])[0] for m in models]))
