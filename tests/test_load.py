"""A trained run in hand gives what the commands give; a ledger as a DataFrame is the ledger."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ledger
from lm import runs
from lm.config.errors import ConfigError
from lm.runs.checkpoint import load_params
from tests.trained import run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "one"
  run(folder)
  return folder


def test_a_loaded_run_is_the_run(workdir):
  loaded = runs.load(workdir)
  params, step = load_params(workdir)
  assert loaded.step == step and loaded.cfg.model.width == 16
  np.testing.assert_array_equal(loaded.params["embed"]["embedding"], params["embed"]["embedding"])
  tokens_BL = jnp.array([loaded.tokenizer.encode("hello")])
  logits_BLV = loaded.model.apply({"params": loaded.params}, tokens_BL)
  assert logits_BLV.shape == (1, 5, 257) and np.isfinite(logits_BLV).all()
  assert repr(loaded) == f"LoadedRun({str(workdir)!r}, step {step}: decoder, width 16)"
  first, again = (loaded.generate(["a", "b"], tokens=4, temperature=0) for _ in range(2))
  assert first == again and len(first) == 2


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(ConfigError, match="holds no run"):
    runs.load(tmp_path)


def test_a_ledger_as_a_dataframe(workdir):
  pytest.importorskip("pandas")
  found = ledger.read(str(workdir.parent))
  assert repr(found) == "Ledger(1 run, 1 done)"
  table = found.to_pandas()
  assert table.loc[0, "n_params"] == found.rows[0]["n_params"] and "curve" not in table
  assert (
    table.loc[0, "optim.b1"] == 0.9 and table.loc[0, "data.sources"] == "synthetic:markov-64-s1"
  )
