"""Rows that are not runs of their own are found, said, and resampled together."""

import numpy as np
import pytest

from experiments import laws
from tests.test_laws_table import write

KEYS = ("n_params", "n_tokens")


def runs(n, d, noise=0.002, **texts):
  """A table of losses of a law, with independent noise."""
  n, d = (np.asarray(v, float).ravel() for v in (n, d))
  loss = 1.7 + 400 / n**0.34 + 400 / d**0.28
  loss = loss * np.exp(noise * np.random.default_rng(0).standard_normal(len(n)))
  return laws.from_columns({"n_params": n, "n_tokens": d, "loss": loss}, texts)


def factorial(n_tokens):
  return np.meshgrid(np.geomspace(1e7, 1e9, 6), n_tokens, indexing="ij")


def repeated(table, times):
  rows = np.repeat(np.arange(len(table)), times)
  return laws.from_columns({k: v[rows] for k, v in table.columns.items()})


def test_copies_of_a_row_are_said_and_resampled_together():
  from experiments.laws import repeats

  table = repeated(runs(*factorial(np.geomspace(1e9, 1e11, 4))), 4)
  found = repeats.examine(table, KEYS)
  assert len(set(found.clusters)) == 24 and len(found) == 96
  assert any("72 rows like another one" in n and "--drop_repeats" in n for n in found.notes)


def test_repeated_rows_of_a_file_can_be_left_out(tmp_path):
  path = write(tmp_path, "i,params,tokens,loss\n0,1e6,2e7,3\n1,1e6,2e7,3\n2,2e6,2e7,3\n")
  assert list(laws.read_table(path, drop_repeats=True).rows) == [1, 3]
  assert len(laws.read_table(path)) == 3


def test_checkpoints_are_found_by_a_column_of_runs():
  from experiments.laws import repeats

  n, d = factorial(np.geomspace(1e9, 1e11, 4))
  names = np.array([f"size{i // 4}" for i in range(24)])
  found = repeats.examine(runs(n, d, run_name=names), KEYS)
  assert list(found.clusters) == list(names) and any("6 runs" in note for note in found.notes)
  alone = repeats.examine(runs(n, d, run_name=[f"r{i}" for i in range(24)]), KEYS)
  assert alone.clusters is None


@pytest.mark.parametrize("tokens", [np.linspace(1e9, 1e10, 10), np.geomspace(1e9, 1e11, 15)])
def test_checkpoints_are_found_by_their_trajectories(tokens):
  from experiments.laws import repeats

  found = repeats.examine(runs(*factorial(tokens)), KEYS)
  assert len(set(found.clusters)) == 6
  assert any("look like checkpoints of 6 runs" in note for note in found.notes)


def test_runs_that_share_their_noise_are_found_by_it():
  from experiments.laws import repeats

  n, d = np.meshgrid(np.geomspace(1e7, 1e9, 12), np.geomspace(1e9, 1e11, 5), indexing="ij")
  table = runs(n, d, noise=2e-4)
  shared = np.repeat(np.exp(0.01 * np.random.default_rng(1).standard_normal(12)), 5)
  together = laws.from_columns(table.columns | {"loss": table["loss"] * shared})
  assert len(set(repeats.examine(together, KEYS).clusters)) == 12
  assert repeats.examine(table, KEYS).clusters is None


def test_independent_designs_are_not_taken_for_checkpoints():
  from experiments.laws import repeats

  assert repeats.examine(runs(*factorial(np.geomspace(1e9, 1e11, 5))), KEYS).clusters is None
  c, n = np.meshgrid(np.geomspace(1e18, 1e21, 6), np.geomspace(1e7, 1e9, 6), indexing="ij")
  assert repeats.examine(runs(n, c / 6 / n), KEYS).clusters is None


def test_two_scales_of_loss_are_refused_and_what_tells_them_apart_is_named():
  from experiments.laws import repeats

  n, d = (np.tile(v.ravel(), 2) for v in factorial(np.geomspace(1e9, 1e11, 4)))
  table = runs(n, d, set=np.repeat(["c4", "code"], 24))
  scale = np.repeat([1.0, 0.4], 24)
  table = laws.from_columns(table.columns | {"loss": table["loss"] * scale}, table.labels)
  with pytest.raises(
    ValueError, match=r"cannot be noise.*'set' differs.*--where 'set=c4'.*--best"
  ) as error:
    repeats.examine(table, KEYS)
  assert "\n" not in str(error.value)
  assert any("cannot be noise" in n for n in repeats.examine(table, KEYS, lenient=True).notes)
  with pytest.raises(ValueError, match="cannot be noise"):  # as points of one isoFLOP slice
    repeats.examine(table, ("n_params",), groups=d)
  assert len(repeats.lowest(table, KEYS)) == 24 and repeats.lowest(table, KEYS)["loss"].max() < 2


def test_seeds_of_one_setting_are_said_to_be_replicates():
  from experiments.laws import repeats

  n, d = (np.tile(v.ravel(), 2) for v in factorial(np.geomspace(1e9, 1e11, 4)))
  found = repeats.examine(runs(n, d), KEYS)
  assert found.clusters is None and any(
    "24 settings" in n and "relative sd" in n for n in found.notes
  )
