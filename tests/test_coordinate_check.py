"""Across widths, training changes layers equally under mup and ever more under standard."""

import subprocess
import sys

import pytest

from experiments import coordinate_check


def assert_transfers(rows):
  """Slopes of log(size) against log(width): flat everywhere under mup, in blocks only there."""
  for field in ("rms", "change"):
    slopes = coordinate_check.slopes(rows, field)
    for layer in coordinate_check.LAYERS:
      assert abs(slopes["mup", layer]) < 0.15, (field, layer, slopes["mup", layer])
    for layer in ("query", "attention out", "mlp up", "mlp down"):
      assert slopes["standard", layer] > 0.4, (field, layer, slopes["standard", layer])


@pytest.mark.slow
def test_a_wider_model_changes_as_much_under_mup_and_more_under_standard():
  assert_transfers(coordinate_check.check(sizes=(64, 256)))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("tied", "widths"), [(True, (64, 128, 256, 512, 1024)), (False, (128, 256, 512, 1024))]
)
def test_coordinate_check_up_to_width_1024(tied, widths, tmp_path):
  # Untied, attention at width 64 is still 1.7 times its limit and flat from 128 on: not a slope.
  rows = coordinate_check.check("width", widths, tied=tied)
  assert_transfers(rows)
  assert coordinate_check.slopes(rows, "change")["standard", "logits"] > 0.25
  chart = tmp_path / "chart.html"
  coordinate_check.save_chart(rows, "width", str(chart))
  assert "mlp down" in chart.read_text()


@pytest.mark.slow
def test_the_residual_stream_grows_with_depth_under_mup_and_not_under_completep_or_umup():
  rows = coordinate_check.check("depth", (4, 8, 16))
  for field in ("rms", "change"):
    slopes = coordinate_check.slopes(rows, field)
    assert slopes["mup", "residual stream"] > 0.5 > 0.25 > abs(slopes["umup", "residual stream"])
    for layer in coordinate_check.LAYERS:
      # Those of blocks are means over blocks, of which a deeper model has more late ones: no layer's slope.
      limit = 0.15 if layer in ("embed", "residual stream", "final norm", "logits") else 0.25
      assert abs(slopes["completep", layer]) < limit, (field, layer, slopes["completep", layer])


def test_help_ends_in_a_runnable_example():
  command = [sys.executable, "-m", "experiments.coordinate_check", "--help"]
  shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  assert shown.rstrip().splitlines()[-1].startswith("  python -m experiments.coordinate_check --")
