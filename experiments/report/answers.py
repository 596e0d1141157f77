"""The paragraph that a report begins with: what was asked, answered with the key figure."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence

from experiments.laws import LawFit
from experiments.laws.isoflop import IsoFlopFit
from experiments.ledger.compare import SEEDS
from experiments.ledger.judged import LOSS, judge_of
from experiments.ledger.ledger import Ledger
from experiments.report.claims import is_estimate, verdict
from experiments.report.formats import estimate, formula, limits, percent
from experiments.report.law_charts import REFERENCES
from experiments.report.page import escape
from lm.config.errors import number_of

ROUNDED = 0.005  # of exponents that are published with two decimals
WORDS = {
  "agrees": "agrees with", "consistent": "is consistent with", "borderline": "barely meets",
  "differs": "differs from", "cannot tell": "cannot be told from",
}  # fmt: skip


def answer(experiment, results: Mapping, rows: Ledger) -> str:
  """Markup of one paragraph.

  Args:
    experiment: with its claims.
    results: what its `analyse` returned, groups flattened; {} where there is none.
    rows: of all its runs.
  """
  if law := of_laws(results):
    return law
  if said := _of_claims(experiment.claims, results):
    return said
  return _of_settings(rows, experiment.halving is not None)


def of_laws(results: Mapping) -> str:
  """The exponent of N* by each method against the published ones, and how the law extrapolates."""
  fits = [
    (k, r)
    for k, r in results.items()
    if isinstance(r, IsoFlopFit | LawFit) and r.size_exponent and not r.size_exponent.fixed
  ]
  if not fits:
    return _of_parameters(results)
  (key, first), *others = sorted(fits, key=lambda pair: isinstance(pair[1], LawFit))
  a = first["a"]
  ours = f"<b>N* grows as C<sup>a</sup> with a = {_number(a.value)}</b>"
  parts = [f"{ours} {_limits(a.interval)} ({escape(_how(key, first))}){_against(a)}."]
  if others:
    shown = "; ".join(
      f"{_number(f['a'].value)} {_limits(f['a'].interval)} ({escape(_how(k, f))})"
      for k, f in others[:2]
    )
    parts.append(f"Otherwise fitted: {shown}.")
  held = next((f.holdout for _, f in fits if isinstance(f, LawFit) and f.holdout is not None), None)
  off = [_how(k, f) for k, f in fits if f.lack_of_fit is not None and f.lack_of_fit.fails]
  if off:
    parts.append(
      f"Tests of its form fail ({escape('; '.join(off))}), so the intervals are widened or withheld."
    )
  if held:
    inside = round(held.covered * held.n_held)
    trust = "" if held.verdict != "fails" else " Extrapolations from it are not to be trusted."
    within = f"{inside} of {held.n_held} lie in their {percent(held.level)} intervals."
    parts.append(
      f"Fitted without the largest budget, the law predicts its {number_of(held.n_held, 'run')} with an RMS "
      f"error of {percent(held.rms, 2)}; {within}{trust}"
    )
  return " ".join(parts)


def _of_parameters(results: Mapping) -> str:
  """The parameters of a law that says nothing of N*, and whether its tests let it stand."""
  found = next(((k, r) for k, r in results.items() if isinstance(r, LawFit)), None)
  if found is None:
    return ""
  fit = found[1]
  values = [fit[p.name] for p in fit.law.params]
  named = ", ".join(f"{formula(e.name)} = {estimate((e.value, e.interval))}" for e in values)
  said = f"<b>{formula(fit.law.formula)}</b> with {named} ({number_of(fit.n, 'run')})."
  judged = [j.text for j in (fit.lack_of_fit, fit.holdout) if j is not None]
  return " ".join([said, *(escape(f"{t[:1].upper()}{t[1:]}.") for t in judged)])


def _against(a) -> str:
  """Which published exponents, known to two decimals, the interval holds, and which it leaves out."""
  if not a.interval:
    return ", without an interval"
  low, high = a.interval
  groups = {"holds": [], "excludes": []}
  for label, value, _ in REFERENCES:
    who = label.partition(":")[0]
    is_held = low - ROUNDED <= value <= high + ROUNDED
    groups["holds" if is_held else "excludes"].append(f"{who}’s {value:.2f}")
  said = [f"{verb} {' and '.join(who)}" for verb, who in groups.items() if who]
  return f": the interval {' and '.join(said)}" if said else ""


def _of_claims(claims: Sequence, results: Mapping) -> str:
  parts = []
  for i, claim in enumerate(claims):
    ours = results.get(claim.what)
    if ours is None or not is_estimate(ours):
      continue
    word = verdict(claim, ours).word
    figure = f"{formula(claim.what)} = {estimate((ours.value, ours.interval), _number)}"
    figure = f"<b>{figure}</b>" if i == 0 else figure
    source = re.split(r"[,§]|:(?!\d)", claim.source)[0].strip()
    theirs = f"a number {claim.said}" if claim.one_sided else _number(claim.value)
    parts.append(f"{figure}, which {WORDS[word]} {theirs} ({escape(source)})")
  return "; ".join(parts) + "." if parts else ""


def _of_settings(rows: Ledger, halved: bool) -> str:
  """The best setting, its distance to the next beside the spread of seeds, whether it is at an edge."""
  judge = judge_of(rows)
  done = judge.known(rows.done())
  if not done:
    return "No run has ended well yet, so there is no answer."
  if halved:
    top = max(map(rung_of, done))
    done = [r for r in done if rung_of(r) == top]
  keys = [k for k in Ledger(tuple(done)).varied() if k not in SEEDS and not k.startswith("log.")]
  groups = {}
  for row in done:
    groups.setdefault(tuple(str(row.get(k)) for k in keys), []).append(row)
  mean = lambda group: statistics.fmean(r[judge.key] for r in group)
  ranked = sorted(groups.values(), key=lambda g: judge.rank(mean(g)))
  best, value = ranked[0], mean(ranked[0])
  article = "a " if judge == LOSS else ""
  if len(ranked) == 1:
    return f"<b>The {judge.name} is {value:.4f}</b> ({_runs(best)}); only one setting has ended."
  setting = _setting(best[0], keys)
  parts = [
    f"<b>The best of {len(ranked)} settings is {escape(setting)}, "
    f"with {article}{judge.name} of {value:.4f}</b>"
  ]
  spreads = [statistics.stdev(r[judge.key] for r in g) for g in ranked if len(g) > 1]
  behind = abs(mean(ranked[1]) - value)
  side = "below" if judge.better == "higher" else "above"
  gap = f"the next, {escape(_setting(ranked[1][0], keys))}, is {behind:.4f} {side}"
  if spreads:
    pooled = math.sqrt(statistics.fmean(s * s for s in spreads))
    error = pooled * math.sqrt(1 / len(best) + 1 / len(ranked[1]))
    times = behind / error if error > 0 else math.inf
    said = (
      "cannot be told apart from noise" if times < 2 else "is more than the noise of seeds explains"
    )
    gap += f", which {said} ({times:.2g} standard errors; seeds spread by {pooled:.4f})"
  else:
    gap += "; without repeats over seeds, how much of that is noise is not known"
  parts.append(f" ({_runs(best)}); {gap}.")
  edges = [k for k in keys if _at_edge(best[0], done, k)]
  if edges:
    parts.append(
      f" It lies at an edge of the values tried for {escape(', '.join(edges))}: try further ones."
    )
  return "".join(parts)


def rung_of(row: Mapping) -> int:
  """The rung of a halved run, from its name; 0 where it has none."""
  match = re.search(r",rung=(\d+)$", row["name"])
  return int(match[1]) if match else 0


def _at_edge(row: Mapping, rows: Sequence[Mapping], key: str) -> bool:
  values = sorted({r[key] for r in rows if isinstance(r.get(key), int | float)})
  return len(values) > 2 and row.get(key) in (values[0], values[-1])


def _setting(row: Mapping, keys: Sequence[str]) -> str:
  return ", ".join(f"{k.rpartition('.')[2]} = {row.get(k)}" for k in keys[:4]) or row["name"]


def _runs(group: Sequence) -> str:
  return f"mean of {len(group)} runs" if len(group) > 1 else "one run"


def _how(key: str, fit) -> str:
  if isinstance(fit, IsoFlopFit):
    return f"{key}, {number_of(len(fit.used), 'slice')} of equal compute"
  return f"{key}, {fit.law.name}, {number_of(fit.n, 'run')}"


def _number(value: float) -> str:
  return f"{value:.3f}".replace("-", "−") if abs(value) < 100 else f"{value:.4g}"


def _limits(interval) -> str:
  return limits(interval, _number) if interval else ""
