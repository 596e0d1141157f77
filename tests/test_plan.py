"""Plans: arithmetic without devices, a step compiled for eight, rooflines in closed form, the search."""

import argparse
import dataclasses
import json

import jax
import pytest

from lm.config.errors import ConfigError
from lm.cost.flops import flops_per_token
from lm.cost.parameters import param_counts
from lm.devices.chips import CHIPS, Chip
from lm.devices.sharding import make_mesh
from lm.plan import compiled
from lm.plan import layouts as fit
from lm.plan import run_plan as plan
from lm.plan.collectives import Collective
from lm.plan.hlo_cost import Work
from lm.setup.load import load_config
from lm.setup.resolve import resolve

# 1 FLOP and 1 byte a second; each of two ports sends 1 byte a second.
UNIT = Chip(("unit",), 1.0, None, 2.0, 0.5, 100.0, 1.0, 2.0, 0, 0.1, 3.0, "made up")


class FakeDevice:
  device_kind = "TPU v5 lite"
  process_index = 0


def make_config(**changes):
  small = {
    "model.width": 64,
    "model.depth": 3,
    "model.heads": 4,
    "model.seq_len": 32,
    "model.vocab_size": 512,
    "model.attention": "einsum",
    "train.batch_size": 8,
    "train.tokens": 256 * 100,
    "data.vocab_size": 512,
  }
  return load_config("configs/default.py", small | changes)


@pytest.fixture(scope="module")
def examined():
  cfg = resolve(make_config(**{"mesh.replica": 1, "mesh.fsdp": 4, "mesh.tensor": 2}), 512, 8)
  return cfg, compiled.examine(cfg, make_mesh(cfg.mesh))


def options(**given):
  none = {"plan": False, "compile": False, "topology": None, "fit": False, "stack": None}
  none |= {"json": False, "print_config": False}
  return argparse.Namespace(**none | given)


# --- arithmetic -----------------------------------------------------------------------------------


def test_a_plan_is_for_the_devices_that_it_is_given():
  cfg = resolve(make_config(), 512, 8)
  facts = plan.make_plan(cfg, None, [FakeDevice()] * 8)
  assert (facts.devices, facts.device) == (8, "TPU v5 lite")
  assert facts.peak_flops == 8 * CHIPS["TPU v5e"].float32
  assert plan.make_plan(cfg).device == jax.devices()[0].device_kind


@pytest.mark.parametrize("given, words", [
  ({"topology": "v5e-8"}, "topology=v5e-8: belongs to a plan; add --plan"),
  ({"fit": True}, "fit=True: belongs to a plan; add --plan"),
  ({"compile": True}, "compile=True: belongs to a plan; add --plan"),
  ({"plan": True, "fit": True, "stack": "f"}, "fit=True: plans one run, not a stack; use --config"),
  ({"json": True}, "json=True: is of --plan and --print_config; a run's record is metrics.jsonl"),
])  # fmt: skip
def test_options_that_do_not_go_together(given, words):
  with pytest.raises(ConfigError) as error:
    plan.check_options(options(**given))
  assert str(error.value) == words
  plan.check_options(options(plan=True, topology="v5e-8"))
  plan.check_options(options())


# --- the compiled step ----------------------------------------------------------------------------


def test_state_is_split_as_the_mesh_says(examined):
  cfg, facts = examined
  total = param_counts(cfg.model).total
  # Norms are on every device.
  assert total / 8 <= facts["bytes"]["parameters"] / 4 < 1.1 * total / 8
  assert facts["bytes"]["optimizer"] == pytest.approx(2 * facts["bytes"]["parameters"], rel=1e-3)
  assert facts["bytes"]["gradients"] > 0.5 * facts["bytes"]["parameters"]  # those of the layers
  assert facts["bytes"]["activations"] > 0


def test_matrix_products_are_those_of_the_exact_count(examined):
  cfg, facts = examined
  exact = flops_per_token(cfg.model, "exact") * 8 * 32
  assert facts["flops"]["ours"]["exact"] == exact
  assert facts["flops"]["matmul"] == pytest.approx(exact, rel=0.03)
  assert facts["flops"]["xla"] > facts["flops"]["matmul"]
  assert facts["flops"]["xla_loops_once"] < 0.7 * facts["flops"]["xla"]


def test_collectives_run_over_the_axes_in_use(examined):
  _, facts = examined
  axes = {axis for row in facts["collectives"] for axis in row["axes"]}
  assert axes == {"fsdp", "tensor"}
  gathers = [row for row in facts["collectives"] if row["kind"] == "all-gather"]
  assert any(row["axes"] == ["fsdp"] and row["count"] % 3 == 0 for row in gathers)


def test_unknown_chips_have_no_time_and_the_plan_says_so(examined):
  cfg, facts = examined
  assert facts["fits"] is None and facts["roofline"] is None and facts["dollars"] is None
  json.dumps(facts)
  text = plan.show(dataclasses.replace(plan.make_plan(cfg), compiled=facts))
  assert "all-gather" in text and "in matrix products" in text and "MFU" not in text


def test_accumulated_gradients_are_counted():
  one = {"mesh.replica": 8, "train.batch_size": 16}
  sizes = []
  for accumulate in (1, 2):
    cfg = resolve(make_config(**one, **{"train.accumulate": accumulate}), 512, 8)
    sizes.append(compiled.examine(cfg, make_mesh(cfg.mesh))["bytes"])
  assert sizes[1]["gradients"] > 1.5 * sizes[0]["gradients"]
  assert sizes[1]["activations"] < 0.8 * sizes[0]["activations"]


@pytest.mark.parametrize("words, needed", [
  ("Ran out of memory on HBM, the total memory required for HLO temporaries (38.97G) exceeds "
   "available HBM (15.75G).", 38.97 * 2**30),
  ("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.5G of 15.75G "
   "hbm.", 20.5 * 2**30),
  ("Out of memory while trying to allocate something.", None),
])  # fmt: skip
def test_the_bytes_in_an_error_of_xla(words, needed):
  assert compiled._needed(words) == needed


# --- rooflines ------------------------------------------------------------------------------------


def test_roofline_in_closed_form():
  done = [
    Work("product", 2, {"bf16": 10.0}, 99.0, 4.0),  # 10 s against 4
    Work("copy", 3, {}, 0.0, 5.0),  # 5 s of memory
    Work("float32", 1, {"f32": 2.0}, 0.0, 1.0),  # 4 s: half the peak
    Work("int8", 1, {"s8": 2.0}, 0.0, 0.0),  # 1 s: twice the peak
  ]
  links = [{"seconds": 50.0, "hidden": True}, {"seconds": 7.0, "hidden": False}]
  found = compiled.roofline(done, links, UNIT)
  assert found == {
    "compute": 25.0, "memory": 24.0, "chip": 40.0, "network": 57.0, "exposed": 7.0, "step": 57.0,
    "serial": 106.0,
  }  # fmt: skip
  assert compiled.roofline(done, links[1:], UNIT)["step"] == 47.0


def test_hours_and_dollars_in_closed_form():
  cfg = resolve(make_config(), 512, 8)
  cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, dtype="bfloat16"))
  found = compiled.cost(cfg, {"step": 36.0}, UNIT, 8)
  assert found["hours"] == 100 * 36 / 3600
  assert found["dollars"] == found["hours"] * 8 * 3.0
  assert found["tokens_per_sec"] == 256 / 36
  assert found["mfu"] == flops_per_token(cfg.model, "exact") * 256 / (36 * 8)


def test_equal_collectives_are_one_row():
  cfg = resolve(make_config(**{"mesh.replica": 1, "mesh.fsdp": 4, "mesh.tensor": 2}), 512, 8)
  over = {"fsdp": ((0, 2, 4, 6), (1, 3, 5, 7)), "tensor": ((0, 1), (2, 3), (4, 5), (6, 7))}
  gather = Collective("all-gather", 80.0, 3, over["fsdp"], True, "f32[20]", "jit(call)/a")
  reduce = Collective("all-reduce", 10.0, 2, over["tensor"], False, "f32[5]", "jit(call)/b")
  alone = Collective("all-reduce", 10.0, 2, ((0,), (1,)), False, "f32[5]", "jit(call)/c")
  rows = compiled.summarize([gather, gather, reduce, alone], UNIT, make_mesh(cfg.mesh))
  assert [(r["kind"], r["axes"], r["count"], r["sent"]) for r in rows] == [
    ("all-gather", ["fsdp"], 6, 6 * 80 * 3 / 4),
    ("all-reduce", ["tensor"], 2, 2 * 2 * 10 / 2),
  ]
  assert rows[0]["seconds"] == 6 * 60 / UNIT.link
  unknown = compiled.summarize([gather], None, make_mesh(cfg.mesh))
  assert unknown[0]["seconds"] is None


# --- the search -----------------------------------------------------------------------------------


def test_meshes_use_all_devices_and_split_whole_heads():
  cfg = make_config(**{"model.kv_heads": 2})
  found = list(fit.meshes(cfg, 8))
  assert all(m["replica"] * m["fsdp"] * m["tensor"] == 8 for m in found)
  assert {m["tensor"] for m in found} == {1, 2}
  assert len({tuple(m.values()) for m in found}) == len(found) == 4 + 3


def test_estimates_order_layouts():
  chip = CHIPS["TPU v5e"]
  made = lambda **changes: resolve(make_config(**changes), 512, 8)
  plain = made(**{"train.batch_size": 64})
  assert fit.estimate(made(**{"train.batch_size": 64, "model.remat": "full"}), chip, 8) > 0
  many = made(**{"train.batch_size": 64, "mesh.replica": 1, "mesh.fsdp": 8, "train.accumulate": 8})
  few = made(**{"train.batch_size": 64, "mesh.replica": 1, "mesh.fsdp": 8})
  assert fit.estimate(many, chip, 8) > fit.estimate(few, chip, 8)  # gathers for each micro-batch
  assert fit.estimate(plain, chip, 8) > 0


def test_the_search_takes_the_fastest_that_fits(monkeypatch):
  """A pretended compiler: the first two layouts do not fit, and each one is faster than the last."""
  seen = []

  def examine(cfg, mesh):
    seen.append(cfg)
    return {
      "fits": len(seen) > 2, "roofline": {"step": 1 / len(seen)}, "mfu": 0.5,
      "bytes": {"parameters": 1e9}, "compile_seconds": 1.0,
    }  # fmt: skip

  monkeypatch.setattr(compiled, "examine", examine)
  monkeypatch.setattr(fit, "make_mesh", lambda *_, **__: None)
  said = []
  found = fit.search(make_config(**{"train.batch_size": 16}), 512, [FakeDevice()] * 8, said.append)
  assert [row["fits"] for row in found["tried"]] == [False] * 2 + [True] * (fit.COMPILED - 2)
  assert len(said) == len(seen) == fit.COMPILED
  assert found["best"] is found["tried"][-1]
  assert found["plan"].mesh == vars(seen[-1].mesh)
  assert len({cfg.mesh for cfg in seen}) > 1  # a mesh that disappoints gives way to others
  again = load_config("configs/default.py", {
    flag.removeprefix("--config.").split("=")[0]: flag.split("=")[1]
    for flag in found["best"]["flags"]
  })  # fmt: skip
  assert again.train.accumulate == seen[-1].train.accumulate
  assert resolve(again, 512, 8).mesh == seen[-1].mesh


@pytest.mark.parametrize("part", ["largest", "smallest"])
def test_the_search_plans_for_a_part_of_the_memory(part, monkeypatch):
  """Where no layout has room, the smallest is tried first; where all have, the fastest."""
  seen = []

  def examine(cfg, mesh):
    seen.append(cfg)
    raise KeyboardInterrupt

  cfg, device = make_config(**{"train.batch_size": 16}), FakeDevice()
  every = list(fit.layouts(cfg, 512, 8, fit.chips.find_chip(device.device_kind)))
  monkeypatch.setattr(compiled, "examine", examine)
  monkeypatch.setattr(fit, "make_mesh", lambda *_, **__: None)
  monkeypatch.setattr(fit, "ROOM", 0.0 if part == "smallest" else 1.0)
  with pytest.raises(KeyboardInterrupt):
    fit.search(cfg, 512, [device] * 8, print)
  key = (lambda one: one.bytes / fit.SLACK) if part == "smallest" else (lambda one: one.seconds)
  assert key(next(one for one in every if one.cfg == seen[0])) == min(map(key, every))


def test_the_search_needs_a_known_chip():
  with pytest.raises(ConfigError, match="has no row in lm/devices/chips"):
    fit.search(make_config(), 512, jax.devices(), print)


def test_the_search_says_when_nothing_divides():
  with pytest.raises(ConfigError, match="no layout over 8 devices divides it; use a multiple of 8"):
    fit.search(make_config(**{"train.batch_size": 3}), 512, [FakeDevice()] * 8, print)
