"""README's figures of the experiments are what their committed ledgers give."""

import re
import types

import numpy as np
import pytest

from experiments import (
  acceptance,
  chinchilla,
  collapse,
  depth_transfer,
  experts,
  isoflop_wide,
  laws,
  lr_sweep,
  lr_tokens,
  muon_race,
  repetition,
  stability,
  unseen_schedule,
  wsd_cosine,
)
from experiments.ledger import ledger as ledgers
from tests.programs import ROOT

RESULTS = ROOT / "experiments/results"
NUMBER = r"([-+]?\d+\.\d+)"


def published() -> list[tuple[tuple[float, float, float], float]]:
  """((value, low, high), one unit of the last digit) of every `value [low, high]` in README."""
  found = re.findall(rf"{NUMBER} \[{NUMBER}, {NUMBER}\]", one_line("README.md"))
  return [(tuple(map(float, numbers)), 10.0 ** -len(numbers[0].split(".")[1])) for numbers in found]


def words(found, digits):
  return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(found.value, *found.interval, d=digits)


def one_line(page):
  return " ".join((ROOT / page).read_text().split())


def assert_published(what, estimate):
  """Equal but for half a unit of the last digit, and half of one more: quantiles of seeded bootstraps."""
  ours = (estimate.value, *estimate.interval)
  for numbers, unit in published():
    if all(abs(a - b) <= unit for a, b in zip(ours, numbers, strict=True)):
      return
  text = f"{ours[0]:.3f} [{ours[1]:.3f}, {ours[2]:.3f}]"
  raise AssertionError(f"{what}: the ledger gives {text}; README says otherwise, or nothing")


def test_the_slopes_of_the_best_learning_rate():
  found = lr_sweep.analyse(ledgers.load_ledger(str(RESULTS / "lr_sweep/ledger.jsonl")).done())
  for parameterization in ("standard", "mup"):
    assert_published(parameterization, found[lr_sweep.SHIFT.format(parameterization)])


def done(study):
  return ledgers.load_ledger(str(RESULTS / study.__name__.split(".")[-1] / "ledger.jsonl")).done()


@pytest.mark.slow
def test_the_exponents_of_the_optimal_size():
  found = chinchilla.analyse(done(chinchilla))
  assert_published("isoFLOP slices", found[chinchilla.SLICES_A])
  assert_published("parametric law", found[chinchilla.LAW_A])
  assert f"`chinchilla` has {len(done(chinchilla))} runs over a factor" in one_line("README.md")


@pytest.mark.slow
def test_the_exponents_over_a_hundredfold_of_compute():
  ledger, text = done(isoflop_wide), one_line("README.md")
  found = isoflop_wide.analyse(ledger)
  for what in (chinchilla.SLICES_A, isoflop_wide.BARE_A):
    assert_published(what, found[what])
    assert f"C^{words(found[what], 2)}" in isoflop_wide.__doc__
  sizes = sorted(ledger.column("n_params"))
  said = f"{len(ledger)} runs of {sizes[0] / 1e3:.0f} thousand to {sizes[-1] / 1e3:.0f} thousand parameters"
  assert said in text
  slices, n_of = found["isoFLOP"], {row["model.depth"]: row["n_params"] for row in ledger}
  for depth, steps in collapse.RUNGS["cpu"].items():  # the tokens that are best for a rung's size
    best = (n_of[depth] / 10 ** slices["log10 k_N"].value) ** (1 / slices["a"].value)
    assert 512 * steps == pytest.approx(best / (6 * n_of[depth]), rel=0.1)
  flops = ledger.column("flops")
  assert max(flops) / min(flops) == pytest.approx(100, rel=0.01)
  assert "p = 0.53" in found["isoFLOP"].summary() and "(p = 0.53 for a bend)" in text
  refused = re.search(
    r"does not describe these runs \(F = .*?p = (\S+)\)", found["parametric"].summary()
  )
  assert float(refused[1]) < 1e-11 and "does not describe the runs (p < 1e-11)" in text


def test_a_figure_that_is_not_the_ledgers_is_found():
  with pytest.raises(AssertionError, match="README says otherwise"):
    assert_published("nothing", types.SimpleNamespace(value=0.123, interval=(0.1, 0.2)))


def test_the_gap_and_the_ratio_of_wsd_and_cosine_are_those_its_file_says():
  ledger = ledgers.load_ledger(str(RESULTS / "wsd_cosine/ledger.jsonl")).done()
  found = wsd_cosine.analyse(ledger)
  gap, ratio = found[wsd_cosine.GAP], found[wsd_cosine.RATIO]
  low, high = gap.interval
  assert f"by {-gap.value:.3f} [{-high:.3f}, {-low:.3f}] nats" in wsd_cosine.__doc__
  share = [2**x for x in (ratio.value, *ratio.interval)]
  assert "{:.2f} [{:.2f}, {:.2f}] of cosine's".format(*share) in wsd_cosine.__doc__


def test_the_answers_of_smaller_studies_are_those_their_files_say():
  analysed = lambda study: study.analyse(done(study))
  assert f"D^{words(analysed(lr_tokens)[lr_tokens.SLOPE], 2)}" in lr_tokens.__doc__
  race = analysed(muon_race)[muon_race.MULTIPLIER]
  assert f"worth {words(race, 2)} times" in muon_race.__doc__
  assert_published("muon_race", race)
  repeats = analysed(repetition)
  assert f"({words(repeats[repetition.FOUR], 2)} nats at 4)" in repetition.__doc__
  assert f"{words(repeats[repetition.MANY], 2)} nats more" in repetition.__doc__
  mixture = analysed(experts)[experts.MULTIPLIER]
  assert f"{words(mixture, 2)} times the FLOPs" in experts.__doc__
  assert_published("experts", mixture)
  steady = -analysed(stability)[stability.CHANGE].value
  assert f"by {steady:.3f} [" in stability.__doc__


def test_how_the_best_rate_goes_by_depth_is_what_its_file_says():
  found, text = (
    depth_transfer.analyse(done(depth_transfer)),
    " ".join(depth_transfer.__doc__.split()),
  )
  for kind in ("completep", "mup"):
    assert f"depth^{words(found[depth_transfer.SHIFT.format(kind)], 2)}" in text
  assert found[depth_transfer.GAIN].value < 0  # CompleteP ends lower


@pytest.mark.slow
def test_what_curves_say_is_what_the_files_say():
  found, text = (
    unseen_schedule.analyse(done(unseen_schedule)),
    " ".join(unseen_schedule.__doc__.split()),
  )
  for schedule in unseen_schedule.HELD:
    assert words(found[unseen_schedule.MISS.format("multi_power", schedule)], 3) in text
  good = collapse.analyse(done(collapse))[collapse.GOOD]
  assert "{:.1f} [{:.1f}, {:.1f}] times the noise".format(good.value, *good.interval) in " ".join(
    collapse.__doc__.split()
  )


def test_the_acceptance_tests_prediction_and_truth_are_those_that_are_published():
  ledger = ledgers.load_ledger(str(RESULTS / "acceptance/ledger.jsonl")).done()
  found = acceptance.analyse(ledger)
  predicted, miss = found[acceptance.PREDICTED], found[acceptance.MISS]
  assert_published("acceptance", predicted)
  truth = predicted.value + miss.value
  low, high = predicted.interval
  assert low <= truth <= high and found[acceptance.REGRET].value == 0
  assert f"{truth:.3f}" in (ROOT / "README.md").read_text() and f"{truth:.3f}" in acceptance.__doc__
  assert f"{predicted.value:.3f}\n[{low:.3f}, {high:.3f}] nats/token" in acceptance.__doc__
  seconds = [acceptance.seconds_of(row) for row in ledger]
  assert sum(s for s in seconds if s < max(seconds)) == acceptance.budget("cpu") == 120


@pytest.mark.slow
def test_new_runs_of_a_law_lie_in_the_interval_of_new_runs_as_often_as_it_says():
  """48 ladders drawn from one law with noise; the run at 4 S of each, against its 95 % interval."""
  rng, inside = np.random.default_rng(0), 0
  sizes = [(12384, 430_000), (20112, 346_000), (35008, 249_000), (54000, 213_000), (93520, 157_000)]
  n_N, d_N = np.array([(n, k * d) for k in (1, 2, 4, 8) for n, d in sizes], float).T
  loss = lambda n, d: 0.9 + 40 / n**0.4 + 400 / d**0.45
  x = {"n_params": [4e5], "n_tokens": [9e6]}
  for _ in range(48):
    noisy = loss(n_N, d_N) * np.exp(0.01 * rng.standard_normal(len(n_N)))
    table = laws.from_columns({"n_params": n_N, "n_tokens": d_N, "loss": noisy})
    fit = laws.fit_table(table, "chinchilla", holdout=False, n_boot=100, n_starts=20, force=True)
    low, high = acceptance.new_run_interval(fit, x)
    new = loss(4e5, 9e6) * np.exp(0.01 * rng.standard_normal())
    inside += low <= new <= high
  assert inside >= 0.8 * 48
