"""Races: what they train, whether their intervals cover, what they conclude, and what they refuse."""

import json
import math

import numpy as np
import pytest

from experiments.commands import command_line as cli
from experiments.commands import racing, which
from experiments.laws import multiplier as multipliers
from experiments.ledger.ledger import Ledger
from experiments.race import Recipe, judge, recipes
from experiments.race import power as powers
from experiments.race.judge import NANOGPT_RULE, reach, widened
from experiments.sweep import described
from lm.config.errors import ConfigError
from tests.fake_runs import SMOKE, fake_run


def curves(m0, slope, n_rungs, span, floor=2.0, scale=1.5, gamma=0.25):
  """(log C [J], losses of A [J], of B [J]): B reaches with C what A does with m0 C^slope C."""
  u = np.linspace(-0.5, 0.5, n_rungs) * math.log(span)
  loss = lambda u: floor + scale * np.exp(-gamma * u)
  return u, loss(u), loss(u + math.log(m0) + slope * u)


def draw(rng, a_J, b_J, seeds, sd, rho):
  """Losses by seed of A and B at each budget, correlated within a seed."""
  found = ([], [])
  for a, b in zip(a_J, b_J, strict=True):
    z = rng.standard_normal((2, seeds))
    paired = rho * z[0] + math.sqrt(1 - rho**2) * z[1]
    found[0].append({s: a + sd * z[0, s] for s in range(seeds)})
    found[1].append({s: b + sd * paired[s] for s in range(seeds)})
  return found


def coverage(treatment, n, m0, slope, n_rungs, seeds, sd, rho, span=30.0):
  """{what: share of n simulated ladders whose interval holds the truth}."""
  rng, ladders, inside = np.random.default_rng(0), [], []
  u, a_J, b_J = curves(m0, slope, n_rungs, span)
  for _ in range(n):
    a, b = draw(rng, a_J, b_J, seeds, sd, rho)
    noise = multipliers.pair_noise(a, b)
    log_c = np.stack([u, u], 1)
    ladders.append(multipliers.make_ladder(log_c, a, b, noise))
    row = judge_differences(a, b, noise)
    inside += [low <= y - x <= high for x, y, (low, high) in zip(a_J, b_J, row, strict=True)]
  fitted = multipliers.Curves(ladders, treatment, 2.0 if treatment == "pinned" else None)
  found = {"difference": np.mean(inside)}
  for what, at in (("m, lowest", u[0]), ("m, highest", u[-1]), ("m, ten times", u[-1] + 2.3)):
    true = m0 * math.exp(slope * at)
    found[what] = covered(fitted.multiplier(np.full(n, at)), true)
  found["slope"] = covered(fitted.slope(), slope)
  return found


def judge_differences(a, b, noise):
  from experiments.race.judge import _differences

  rows = _differences("a", "b", (a, b), np.ones(len(a)), noise)
  return [(row["low"], row["high"]) for row in rows]


def covered(estimates, true):
  return np.mean([e.interval[0] <= true <= e.interval[1] for e in estimates])


def simulated_ledger(m0=1.3, slope=0.0, sd=0.01, seeds=3, n_rungs=4, seed=0, speed=1.0):
  """Rows of a race of A and B whose curves are known; B's tokens per second are `speed` times A's."""
  u, a_J, b_J = curves(m0, slope, n_rungs, 30.0)
  losses = draw(np.random.default_rng(seed), a_J, b_J, seeds, sd, 0.5)
  rows = []
  for name, rungs, rate in (("a", losses[0], 1e3), ("b", losses[1], 1e3 * speed)):
    for j, by_seed in enumerate(rungs):
      flops = 1e12 * math.exp(u[j])
      rows += [
        {"name": f"{name}@{j},seed={s}", "status": "done", "loss": loss, "flops": flops,
         "flops_exact": 2 * flops, "n_tokens": flops / 1e6, "tokens_per_sec": rate, "n_devices": 1}
        for s, loss in by_seed.items()
      ]  # fmt: skip
  return Ledger(tuple(rows))


# ---- Intervals -----------------------------------------------------------------------------------


def test_without_noise_the_multiplier_comes_back():
  u, a_J, b_J = curves(1.4, 0.1, 4, 30.0)
  a, b = ([{0: x} for x in xs] for xs in (a_J, b_J))
  noise = multipliers.Noise((1e-4, 1e-4), 0.0, math.inf)
  ladder = multipliers.make_ladder(np.stack([u, u], 1), a, b, noise)
  for treatment in multipliers.TREATMENTS:
    fitted = multipliers.Curves([ladder], treatment, 2.0 if treatment == "pinned" else None)
    for at in (u[0], u[-1], u[-1] + 2):
      m = fitted.multiplier(np.array([at]))[0]
      assert m.value == pytest.approx(1.4 * math.exp(0.1 * at), rel=1e-3)
      assert m.interval[0] < m.value < m.interval[1] and m.p < 1e-6
    assert fitted.slope()[0].value == pytest.approx(0.1, abs=1e-3)


def test_intervals_cover_on_a_few_ladders():
  found = coverage("shared", 60, 1.3, 0.1, 3, 3, 0.01, 0.5)
  assert all(0.85 <= share <= 1.0 for share in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("treatment", multipliers.TREATMENTS)
@pytest.mark.parametrize(
  "case",
  [
    dict(m0=1.3, slope=0.1, n_rungs=4, seeds=3, sd=0.01, rho=0.5),
    dict(m0=1.0, slope=0.0, n_rungs=3, seeds=2, sd=0.02, rho=0.7),
    dict(m0=0.8, slope=-0.1, n_rungs=4, seeds=2, sd=0.03, rho=0.0),
  ],
)
def test_every_interval_covers_in_90_to_99_percent_of_500_ladders(treatment, case):
  found = coverage(treatment, 500, **case)
  assert all(0.90 <= share <= 0.99 for share in found.values()), found


def test_where_a_never_gets_there_the_multiplier_has_no_upper_bound():
  u, a_J, _ = curves(1.0, 0.0, 5, 1000.0)
  a, b = ([{0: x, 1: x + 1e-3} for x in xs] for xs in (a_J, a_J - 0.3))
  noise = multipliers.pair_noise(a, b)
  ladder = multipliers.make_ladder(np.stack([u, u], 1), a, b, noise)
  m = multipliers.Curves([ladder], "free").multiplier(np.array([u[-1] + 5]))[0]
  assert m.interval[1] == math.inf and m.interval[0] > 10  # E of A lies above what B reaches


def test_noise_is_pooled_and_paired():
  rng = np.random.default_rng(1)
  a, b = draw(rng, np.ones(50), np.ones(50), 4, 0.1, 0.8)
  noise = multipliers.pair_noise(a, b)
  assert noise.df == 150 and noise.rho == pytest.approx(0.8, abs=0.08)
  assert noise.sd_diff == pytest.approx(0.1 * math.sqrt(2 * 0.2), rel=0.15)
  loud = [{s: 1 + 10 * (x - 1) for s, x in one.items()} for one in b]
  assert multipliers.pair_noise(a, loud).sd[1] == pytest.approx(1.0, rel=0.15)
  assert multipliers.pair_noise([{0: 1.0}], [{0: 2.0}]) is None


# ---- Verdicts ------------------------------------------------------------------------------------


def test_a_better_recipe_is_found_with_its_multiplier_and_in_seconds():
  (pair,) = judge(simulated_ledger(1.5, speed=0.8)).pairs
  assert pair.word == "better" and pair.at["shared"].interval[0] > 1
  seconds = [r for r in pair.multipliers if r["in"] == "device-seconds" and r["E"] == "shared"]
  flops = [r for r in pair.multipliers if r["in"] == "FLOPs" and r["E"] == "shared"]
  assert seconds[-1]["m"] == pytest.approx(flops[-1]["m"] * 0.8, rel=0.02)
  assert judge(simulated_ledger(0.7)).pairs[0].word == "worse"
  exact = judge(simulated_ledger(1.5), flops="flops_exact").pairs[0]
  assert exact.differences[0]["budget"] == pytest.approx(2 * pair.differences[0]["budget"])


def test_what_is_not_shown_says_how_many_seeds_would_show_it():
  (pair,) = judge(simulated_ledger(1.04, sd=0.03, seeds=2, seed=3)).pairs
  assert pair.word == "not shown"
  assert "would decide" in pair.why
  (equal,) = judge(simulated_ledger(1.0005, sd=0.03, seeds=2, seed=1)).pairs
  assert equal.word == "not shown"


def test_the_seeds_it_asks_for_do_decide():
  """With k more seeds at that budget, most races of the same recipes reach a verdict."""
  noise, rng = multipliers.Noise((0.02, 0.02), 0.5, 60.0), np.random.default_rng(0)
  u, a_J, b_J = curves(1.08, 0.0, 4, 30.0)
  ladder = lambda seeds, a, b: multipliers.make_ladder(np.stack([u, u], 1), a, b, noise)
  at, more, shown = np.array([u[-1]]), np.ones(4), 0
  few = multipliers.Curves([ladder(2, *draw(rng, a_J, b_J, 2, 1e-9, 0.5))], "shared")
  k = next(
    k for k in range(1, 65)
    if math.log(1.08) >= 2.84 * few.standard_error(at, _with(more, 3, (2 + k) / 2))[0]
  )  # fmt: skip
  ladders = []
  for _ in range(60):
    a, b = draw(rng, a_J, b_J, 2, 0.02, 0.5)
    last = draw(rng, a_J[-1:], b_J[-1:], 2 + k, 0.02, 0.5)
    a[-1], b[-1] = last[0][0], last[1][0]
    ladders.append(ladder(2, a, b))
  found = multipliers.Curves(ladders, "shared").multiplier(np.full(60, u[-1]))
  shown = np.mean([m.p < 0.05 for m in found])
  assert 0.6 <= shown <= 0.97


def _with(values, i, value):
  values = values.copy()
  values[i] = value
  return values


def test_one_budget_is_judged_by_its_difference_alone():
  (pair,) = judge(simulated_ledger(1.5).where("name~@3")).pairs
  assert pair.word == "better" and not pair.multipliers
  assert "3 would give a multiplier" in pair.notes[-1]


def test_without_replicates_nothing_is_concluded_unless_noise_is_given():
  rows = simulated_ledger(1.5, sd=0.003).where("name~seed=0")
  assert judge(rows).pairs[0].word == "not shown"
  assert "No budget has two seeds" in judge(rows).pairs[0].why
  assert judge(rows, noise=0.005).pairs[0].word == "better"


def test_many_challengers_are_judged_together():
  rows = list(simulated_ledger(1.06, sd=0.02, seed=5, n_rungs=3))
  (alone,) = judge(Ledger(tuple(rows))).pairs
  others = [
    {**r, "name": r["name"].replace("b@", f"{c}@")}
    for c in "cd"
    for r in rows
    if r["name"][0] == "b"
  ]
  many = judge(Ledger((*rows, *others))).pairs
  assert len(many) == 3 and alone.p == pytest.approx(many[0].p)
  assert (many[0].word == "not shown") == (3 * alone.p >= 0.05)


def test_misfitting_curves_widen_the_intervals_and_say_so():
  rows = [
    {**r, "loss": r["loss"] + (0.2 if r["name"].startswith("b@1") else 0.0)}
    for r in simulated_ledger()
  ]
  (pair,) = judge(Ledger(tuple(rows))).pairs
  assert any("miss the means" in note for note in pair.notes)


def test_a_target_is_reached_by_nanogpts_rule_and_by_students():
  row = reach(3.28, "a", 1.0, [3.2769, 3.2781, 3.2772])
  score = (3.28 - 3.2774) * math.sqrt(3)
  assert row["(target - mean) sqrt(n)"] == pytest.approx(score, rel=1e-3)
  assert row["nanogpt rule"] == "reached" and score >= NANOGPT_RULE and row["p"] < 0.02
  assert reach(3.28, "a", 1.0, [3.279])["nanogpt rule"] == "not shown"


def test_speeds_errors_join_an_interval_in_the_logarithm():
  m = widened(multipliers.Multiplier(1.0, (math.exp(-0.3), math.inf), 0.1), 0.4)
  assert m.interval == pytest.approx((math.exp(-0.5), math.inf))


# ---- Plans and power -----------------------------------------------------------------------------


def test_a_race_that_cannot_see_the_difference_is_refused():
  noise = powers.Known(0.02, math.inf, "given")
  said, refused = powers.words(noise, 2, 0.01)
  enough = powers.seeds_for(noise, 0.01)
  assert f"use --seeds {enough}" in refused[0] and "show a difference" in said[0]
  assert powers.words(noise, enough, 0.01)[1] == []
  assert "1 seed a budget shows" in powers.words(noise, 1, None)[0][0]
  assert powers.words(None, 2, 0.01)[1] and not powers.words(None, 2, None)[1]
  assert math.sqrt(enough) * 0.01 == pytest.approx(2.80 * 0.02, rel=0.05)  # z(.975) + z(.8)


def test_noise_is_taken_from_the_races_own_runs_then_from_another_sweeps():
  own = simulated_ledger(sd=0.05, seeds=4)
  known = powers.known_noise(None, own, "a", None, "")
  assert known.sd == pytest.approx(0.05, rel=0.4) and "its own" in known.source
  none = Ledger(())
  other = Ledger(
    tuple({"name": f"r{s}", "status": "done", "loss": 3 + 0.1 * s, "seed": s} for s in (0, 1, 2))
  )
  found = powers.known_noise(None, none, "a", other, "x")
  assert found.sd == pytest.approx(0.1 * math.sqrt(2)) and found.df == 2
  assert powers.known_noise(0.1, own, "a", None, "").sd == pytest.approx(0.1 * math.sqrt(2))
  with pytest.raises(ConfigError, match="noise_from=x: holds no settings"):
    powers.known_noise(None, none, "a", other.where("name=r0"), "x")


# ---- Words, runs, commands -----------------------------------------------------------------------


def test_recipes_are_read_from_words():
  found = recipes.read_recipe(f"muon: {SMOKE} optim.name=muon optim.peak_lr=2e-2")
  assert found == Recipe("muon", {"optim.name": "muon", "optim.peak_lr": "2e-2"}, SMOKE)
  assert recipes.read_recipe("optim.name=lion").name == "name-lion"
  assert recipes.read_recipe(SMOKE).name == "smoke"
  with pytest.raises(ConfigError, match=r"race=optim.nam: no such key"):
    recipes.read_recipe("optim.nam=x")
  with pytest.raises(ConfigError, match="is neither KEY=VALUE nor a config file"):
    recipes.read_recipe("a: whatever")
  with pytest.raises(ConfigError, match=r"a blank follows the colon.*write 'b: optim.name=muon'"):
    recipes.read_recipe("b:optim.name=muon")
  with pytest.raises(ConfigError, match=r"sets optim.peak_lr twice"):
    recipes.read_recipe("b: optim.peak_lr=1 optim.peak_lr=2")
  with pytest.raises(ConfigError, match="names two configs"):
    recipes.read_recipe(f"b: {SMOKE} configs/gpt2.py:124m")
  quoted = recipes.read_recipe("b: data.sources='text:/my data/x.txt'")
  assert quoted.overrides == {"data.sources": "text:/my data/x.txt"}
  with pytest.raises(ConfigError, match="no closing quotation"):
    recipes.read_recipe("b: data.sources='text:x")


@pytest.mark.parametrize(
  ("ladder", "said"),
  [
    (["--budgets", "seed=1,2"], "rung=seed: every budget has the same seeds"),
    (["--rung", ""], "rung=: sets nothing"),
    (["--rung", "train.steps=10 train.steps=20"], "sets train.steps twice"),
    (["--rung", "train.steps=10", "--rung", "train.tokens=5000"], "a@0 and a@1 are both of"),
    (["--budgets", "optim.peak_lr=1e-3,1e-2"], "are both of .* let every budget"),
    (["--budgets", "train.steps=,"], "must be key=value,value"),
  ],
)
def test_a_ladder_has_budgets_that_differ_in_compute(ladder, said, tmp_path):
  with pytest.raises(ConfigError, match=said):
    run_race(*WORDS[:2], *ladder, "--root", str(tmp_path), "--plan")


@pytest.mark.parametrize(
  ("recipe", "said"),
  [
    ("b: train.tokens=5000", "train.tokens=5000: is set by the recipe b and by the ladder"),
    (f"b: {SMOKE} data.tokenizer=char", "data.tokenizer=char: b@0,seed=0 is evaluated on other tokens"),
    (f"b: {SMOKE} eval.tokens=8192", "eval.tokens=8192: b@0,seed=0 is evaluated on other tokens"),
  ],
)  # fmt: skip
def test_recipes_share_budgets_and_evaluation(recipe, said, tmp_path):
  with pytest.raises(ConfigError, match=said):
    run_race(WORDS[0], recipe, *WORDS[2:], "--root", str(tmp_path), "--plan")


def test_losses_on_different_tokens_and_an_e_above_a_loss_are_not_judged():
  rows = list(simulated_ledger())
  mixed = [{**r, "eval_fingerprint": r["name"][0]} for r in rows]
  with pytest.raises(ConfigError, match="evaluated on different tokens"):
    judge(Ledger(tuple(mixed)))
  with pytest.raises(ConfigError, match="pin=9: must be below every loss"):
    judge(Ledger(tuple(rows)), pin=9.0)
  bare = [{k: v for k, v in r.items() if k != "flops_exact"} for r in rows]
  with pytest.raises(ConfigError, match="flops=flops_exact: run a@0,seed=0 has no number"):
    judge(Ledger(tuple(bare)), flops="flops_exact")


def test_nothing_that_a_race_is_told_is_ignored(tmp_path):
  which.save_race(tmp_path / "race", saved_race())
  root = ("--root", str(tmp_path))
  for words, said in (
    (("race", *root, "--save_as", "other"), "save_as=other: race has its name"),
    (("race", *root, "--seeds", "1"), "seeds=1: race has 2 already"),
    (("x", *root, "--budgets", "train.steps=1,2"), "race=.*: x is neither"),
    ((f"a: {SMOKE}", *root, "--budgets", "train.steps=1,2"), "race=a: needs two recipes"),
    (("--ledger", "x.jsonl", "--see", "3"), "ledger=x.jsonl: is judged as it is.*leave out see"),
    (("race", "--ledger", "x.jsonl"), "leave out recipes"),
    ((*WORDS, *root, "--plan", "--noise_from", "/nowhere"), "noise_from=/nowhere: no such"),
    ((*WORDS, *root, "--plan", "--on", "nosuch"), "on=nosuch: is no back end"),
    ((*WORDS, *root, "--plan", "--mfu", "0.3"), "mfu=0.3: is a chip's"),
    ((*WORDS, *root, "--plan", "--workers", "0"), "workers=0: must be in"),
  ):
    with pytest.raises(ConfigError, match=said):
      run_race(*words)


def test_a_saved_race_is_lengthened_and_its_settings_are_taken_back(tmp_path, capsys):
  spec = saved_race()
  spec["settings"] |= {"pin": 2.0, "at": [1e12], "flops": "flops_exact"}
  which.save_race(tmp_path / "race", spec)
  words = ("race", "--root", str(tmp_path), "--plan", "--json")
  assert run_race(*words, "--budgets", "train.steps=20,40,80,160") == 0
  assert len(json.loads(capsys.readouterr().out)["runs"]) == 16
  read = lambda *more: racing._described(cli.make_parser("").parse_args(["race", *words, *more]))
  assert read()[1]["settings"]["pin"] == 2.0
  found = read("--pin", "None", "--at", "None", "--flops", "flops", "--target", "3")[1]["settings"]
  assert found == racing.JUDGED | {"target": 3.0}


def test_words_that_the_runs_there_do_not_meet_are_not_saved(tmp_path):
  folder = tmp_path / "race"
  changes = {"train.steps": 20, "seed": 0, "optim.name": "lion"}
  fake_run(folder / "b@0,seed=0", changes, loss=3.0)
  with pytest.raises(
    ConfigError, match=r"save_as=race: .*b@0,seed=0 was trained with optim.peak_lr"
  ):
    spec = saved_race()
    which.save_race(folder, {**spec, "recipes": [WORDS[0], f"{WORDS[1]} optim.peak_lr=7"]})
  assert not (folder / "sweep.json").exists()


def test_runs_share_seeds_and_budgets_and_a_rung_unsets_the_configs_budget():
  two = [Recipe("a", {}, SMOKE), Recipe("b", {"optim.name": "lion"}, SMOKE)]
  made = recipes.runs(two, [{"train.flops": 1e9}, {"train.flops": 2e9}], (0, 1))
  assert len(made) == 8 and made[0].overrides["train.steps"] is None
  assert recipes.place(made[-1].name) == ("b", 1, 1)
  assert recipes.place("b@1,seed=1,width=3") == ("b", 1, 1) and recipes.place("width=3") is None
  with pytest.raises(ConfigError, match="is set by the recipe b and by the ladder"):
    recipes.runs([two[0], Recipe("b", {"train.flops": 1e9}, SMOKE)], [{"train.flops": 1e9}], (0,))
  with pytest.raises(ConfigError, match="at least two recipes"):
    recipes.runs(two[:1], [{}], (0,))
  with pytest.raises(ConfigError, match="two recipes have this name"):
    recipes.runs([two[0], two[0]], [{}], (0,))


def run_race(*words):
  options = cli.make_parser("about").parse_args(["race", *words])
  return options.act(options)


WORDS = (f"a: {SMOKE}", f"b: {SMOKE} optim.name=lion", "--budgets", "train.steps=20,40,80")


def test_the_plan_shows_power_and_refuses(tmp_path, capsys):
  words = (*WORDS, "--seeds", "2", "--root", str(tmp_path), "--plan", "--noise", "0.01")
  assert run_race(*words) == 0
  out = capsys.readouterr().out
  assert "12 runs" in out and "power: 2 seeds a budget show a difference of 0.028 nats" in out
  assert run_race(*words, "--see", "0.01", "--json") == 2
  assert "use --seeds" in json.loads(capsys.readouterr().out)["refusals"][0]
  assert not list(tmp_path.iterdir())  # a plan writes nothing
  with pytest.raises(ConfigError, match=r"see=0.01: 2 seeds show .*--force"):
    run_race(*words[:-3], "--noise", "0.01", "--see", "0.01")


@pytest.mark.parametrize(
  "words, said",
  [
    ("--at abc", "at=abc: must be finite numbers"),
    ("--at 1e18,-1", "at=-1: must be > 0"),
    ("--pin nan", "pin=nan: must be a loss, finite"),
    ("--pin -3", "pin=-3.0: must be a loss, finite and not below 0"),
    ("--target inf", "target=inf: must be a loss, finite"),
    ("--see -1", "see=-1.0: must be greater than 0"),
    ("--noise 0", "noise=0.0: must be greater than 0"),
    ("--baseline nope", "baseline=nope: must be one of a, b"),
    ("--flops flop", "flops=flop: must be one of .*did you mean flops"),
    ("--save_as ../x", "save_as=../x: a name is a folder"),
    ("--save_as chinchilla", "save_as=chinchilla: is the name of an experiment file"),
    ("--seeds 0", r"seeds=0: must be in \[1, 1000\]"),
  ],
)
def test_what_a_race_cannot_be_judged_by_is_refused_before_it_is_trained(words, said, tmp_path):
  with pytest.raises(ConfigError, match=said):
    run_race(*WORDS, "--root", str(tmp_path), *words.split())
  assert not list(tmp_path.iterdir())


def test_the_largest_budget_is_the_one_with_most_compute_however_the_ladder_was_written():
  rising = simulated_ledger(sd=0.01, seeds=3)
  turned = Ledger(tuple({**row, "name": turn(row["name"])} for row in rising))
  assert judge(turned).pairs[0].why == judge(rising).pairs[0].why


def turn(name):
  recipe, rung, seed = recipes.place(name)
  return f"{recipe}@{9 - rung},seed={seed}"


def test_a_saved_race_takes_the_seeds_that_its_verdict_asks_for(tmp_path, capsys):
  words = ("--root", str(tmp_path), "--plan", "--json")
  which.save_race(tmp_path / "race", saved_race())
  for more, runs in ((), 12), (("--seeds", "3"), 18):
    assert run_race("race", *words, *more) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == runs


def saved_race():
  settings = {"baseline": None, "at": [], "pin": None, "flops": "flops", "target": None}
  return {
    "recipes": list(WORDS[:2]), "budgets": WORDS[3], "rungs": [], "seeds": 2,
    "settings": {**settings, "noise": None},
  }  # fmt: skip


def test_a_race_whose_runs_are_done_is_judged_and_goes_by_its_name(tmp_path, capsys):
  rng, folder = np.random.default_rng(0), tmp_path / "race"
  for recipe, gain in (("a", 0.0), ("b", 0.3)):
    for rung, steps in enumerate((20, 40, 80)):
      for seed in (0, 1):
        changes = {"train.steps": steps, "seed": seed, "eval.every_steps": 10}
        changes |= {"optim.name": "lion"} if recipe == "b" else {}
        loss = 2 + 2 * steps**-0.3 - gain + 0.003 * rng.standard_normal()
        fake_run(folder / f"{recipe}@{rung},seed={seed}", changes, loss=loss)
  words = (*WORDS, "--seeds", "2", "--root", str(tmp_path))
  words = tuple(w.replace(SMOKE, f"{SMOKE} eval.every_steps=10") for w in words)
  assert run_race(*words, "--json") == 0
  found = json.loads(capsys.readouterr().out)
  assert found["verdicts"]["b"]["verdict"] == "better"
  assert run_race("race", "--root", str(tmp_path), "--at", "1e12", "--target", "3") == 0
  out = capsys.readouterr().out
  assert "b against a: better" in out and "no " in out and "nanogpt rule" in out
  options = cli.make_parser("").parse_args(["status", "race", "--root", str(tmp_path)])
  experiment = which.select(options)
  rows = which.collect(options)
  assert len(rows.done()) == 12
  assert "better" in experiment.analyse(rows.done())["verdict"]
  command = described.command(folder / "sweep.json")
  assert "experiments race" in command and "--budgets" in command
  with pytest.raises(ConfigError, match="no race of that name"):
    run_race("other", "--root", str(tmp_path))


def test_a_race_with_failed_runs_exits_as_training_does(tmp_path, monkeypatch, capsys):
  """Whether the rest can be judged or not: exit code 1 is that of runs that failed."""
  monkeypatch.setattr(racing.running, "train", lambda *about, **more: 1)
  words = (*WORDS, "--seeds", "1", "--root", str(tmp_path))
  assert run_race(*words) == 1
  assert "needs finished runs of two recipes" in capsys.readouterr().err
  for recipe, changes in (("a", {}), ("b", {"optim.name": "lion"})):
    for rung, steps in enumerate((20, 40)):
      asked = {"train.steps": steps, "seed": 0, **changes}
      fake_run(tmp_path / "race" / f"{recipe}@{rung},seed=0", asked, loss=3 - rung)
  assert run_race(*words) == 1
  assert "not trained" in capsys.readouterr().err
