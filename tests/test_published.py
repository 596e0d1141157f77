"""Plans are calibrated on published runs: each is predicted within 15 %, or its row says why not."""

import pytest

from lm.cost.flops import run_flops_per_token
from lm.devices.chips import CHIPS
from lm.devices.published import LARGE, PUBLISHED, UNKNOWN, UTILISATION, utilisation
from lm.plan import run_plan
from lm.setup.load import load_config
from lm.setup.resolve import resolve


def predicted(row) -> float:
  """What a plan says, over what was published."""
  rate = UTILISATION[row.chip]
  if row.tokens_per_sec is None:
    return rate / row.utilisation
  cfg = resolve(
    load_config("configs/llama.py:7b", {**row.shape, "train.tokens_per_param": 20.0}),
    row.shape.get("model.vocab_size", 32_000),
    1,
  )
  return rate * CHIPS[row.chip].bfloat16 / run_flops_per_token(cfg, "exact") / row.tokens_per_sec


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.chip} {row.what}")
def test_a_published_run_is_predicted_or_its_row_says_why_not(row):
  ratio = predicted(row)
  print(f"{row.chip} {row.what}: {ratio - 1:+.1%}")
  assert (abs(ratio - 1) <= 0.15) != bool(row.off), ratio


def test_small_runs_and_chips_without_a_row_are_taken_to_reach_less():
  assert utilisation("TPU v5p", 7e9) == UTILISATION["TPU v5p"]
  assert utilisation("TPU v5p", LARGE / 2) == utilisation("B200", 7e9) == UNKNOWN


def test_a_compiled_plan_says_how_far_published_runs_are_from_its_bound():
  times = dict.fromkeys(("compute", "memory", "network", "exposed", "step", "serial", "chip"), 1.0)
  found = {"roofline": times, "mfu": 0.69, "published_mfu": 0.46, "tokens_per_sec": 10.0}
  found |= {"hours": 1.0, "dollars": None}
  lines = run_plan._time_lines(found)
  assert "            published runs there reach 46%: 1.50 times as long" in lines
  assert lines[-1].endswith("no list price is published")
  assert len(run_plan._time_lines({**found, "published_mfu": None})) == len(lines) - 1
