"""benchmarks/families.py compares families of equal size, with peers that have as many parameters."""

import pytest

from benchmarks import families, family_peers
from lm.cost.parameters import run_counts
from lm.models.registry import FAMILIES
from lm.setup.load import load_config
from lm.setup.resolve import resolve


def config_of(name):
  file, changes = families.FAMILIES[name]
  return resolve(load_config(f"configs/{file}", families.COMMON | changes), 257, 1)


def test_every_family_has_a_row_and_all_are_of_one_size():
  sections = {name: config_of(name) for name in families.FAMILIES}
  own = lambda family: family.section.__module__.startswith("lm.")  # tests register others
  there = {name for name, family in FAMILIES.items() if own(family)}
  assert {cfg.model.family for cfg in sections.values()} == there
  sizes = [run_counts(cfg).total for cfg in sections.values()]
  assert max(sizes) <= 1.08 * min(sizes)


@pytest.mark.slow  # transformers takes seconds to import
@pytest.mark.parametrize("name", family_peers.PEERS)
def test_peers_have_as_many_parameters(name):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  cfg = config_of(name)
  theirs = sum(p.numel() for p in family_peers.PEERS[name](cfg).parameters())
  assert theirs == run_counts(cfg).total
