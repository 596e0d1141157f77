"""Names of TPU slices, the links between their chips, and what is said where libtpu is missing."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest

from lm.config.errors import ConfigError
from lm.devices import topology
from lm.devices.chips import CHIPS


class FakeChip(NamedTuple):
  coords: tuple[int, ...]
  slice_index: int | None = None
  device_kind: str = "TPU v5 lite"


class FakeGpu(NamedTuple):
  process_index: int


def torus(*sizes, kind="TPU v5 lite", slice_index=None):
  coords = [()]
  for size in sizes:
    coords = [(*c, i) for c in coords for i in range(size)]
  return [FakeChip(c, slice_index, kind) for c in coords]


@pytest.mark.parametrize("text, name, chips", [
  ("v5e:2x4", "v5e:2x4", 8),
  ("v5e-8", "v5e:2x4", 8),
  ("v5litepod-256", "v5e:16x16", 256),
  ("v6e-1", "v6e:1x1", 1),
  ("v5p:8x8x8", "v5p:8x8x8", 512),
  ("v5p-512", "v5p:4x8x8", 256),  # Google counts cores there
  ("V5E:16x16*2", "v5e:16x16", 512),
  ("tpu7x-16", "tpu7x:2x2x2", 8),
])  # fmt: skip
def test_names(text, name, chips):
  found = topology.parse(text)
  assert (found.name, found.chips) == (name, chips)


@pytest.mark.parametrize("text, words", [
  ("v5e", "must be GENERATION:SHAPE; for example v5e:2x4"),
  ("h100:8", "must be of a generation in v5e, v5p, v6e"),
  ("v5e:2x4x1", "v5e slices have 2 sizes; use v5e:2x4"),
  ("v5p:4x4", "v5p slices have 3 sizes; use v5p:2x2x2"),
  ("v5e:3x4", "the first two sizes must be even"),
  ("v5e-12", "no slice has that size; use one of v5e-1, v5e-4, v5e-8"),
  ("v5p-9", "no slice has that size; use one of v5p-8, v5p-16"),
  ("v5e:2x4*0", "must have at least one slice"),
])  # fmt: skip
def test_bad_names(text, words):
  with pytest.raises(ConfigError) as error:
    topology.parse(text)
  assert str(error.value).startswith(f"topology={text}: ") and words in str(error.value)


def test_bandwidth_follows_the_links_that_a_group_has():
  chip = CHIPS["TPU v5e"]
  port = chip.link / 4
  mesh, pod = torus(2, 4, 1), torus(16, 16, 1)
  row, column = [d.coords[0] == 0 for d in pod], [d.coords[1] == 0 for d in pod]
  pick = lambda mask: [i for i, use in enumerate(mask) if use]
  assert topology.bandwidth(chip, mesh, range(4)) == port  # a line of 4
  assert topology.bandwidth(chip, mesh, range(8)) == 2 * port  # both axes
  assert topology.bandwidth(chip, pod, pick(row)) == 2 * port  # a ring of 16
  assert topology.bandwidth(chip, pod, pick(column)) == 2 * port
  assert topology.bandwidth(chip, pod, range(256)) == chip.link
  assert topology.bandwidth(chip, pod, pick(row)[:8]) == port  # half of a ring


def test_two_devices_of_one_chip_share_its_links():
  chip = CHIPS["TPU7x"]  # half of one
  slice_ = [d for d in torus(2, 2, 1, kind="TPU7x") for _ in range(2)]  # in order of chips
  assert topology.bandwidth(chip, slice_, range(8)) == pytest.approx(4 * chip.link / 6)
  assert topology.bandwidth(chip, slice_, range(0, 8, 2)) == pytest.approx(2 * chip.link / 6)
  assert topology.bandwidth(chip, slice_, [0, 1]) == 2 * chip.link


def test_slices_and_hosts_talk_over_the_network():
  chip = CHIPS["TPU v5e"]
  two = torus(2, 2, slice_index=0) + torus(2, 2, slice_index=1)
  assert topology.bandwidth(chip, two, [0, 4]) == chip.network
  assert topology.bandwidth(chip, two, [0, 1]) > chip.network
  gpus = [FakeGpu(i // 8) for i in range(16)]
  assert topology.bandwidth(CHIPS["H100"], gpus, range(8)) == CHIPS["H100"].link
  assert topology.bandwidth(CHIPS["H100"], gpus, [0, 8]) == CHIPS["H100"].network


def test_hops_go_the_short_way_round_a_torus():
  line, pod, cube = torus(2, 4, 1), torus(16, 16, 1), torus(4, 4, 4, kind="TPU v5")
  assert topology.hops(line, 0, 3) == 3
  assert topology.hops(pod, 0, 15) == 1
  assert topology.hops(pod, 0, 8 * 16 + 8) == 16
  assert topology.hops(cube, 0, 3) == 1
  assert topology.hops([FakeGpu(0), FakeGpu(1)], 0, 1) == 1


def test_the_remedy_for_a_missing_libtpu(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ConfigError) as error:
    topology.devices("v5e:2x4")
  assert str(error.value) == (
    'topology=v5e:2x4: compiling for TPUs needs libtpu; install it with pip install "jax[tpu]"'
  )


def test_devices_of_every_generation():
  pytest.importorskip("libtpu")
  for text, kind in (("v5e:2x4", "TPU v5 lite"), ("v5p-16", "TPU v5"), ("v6e-1", "TPU v6 lite")):
    found = topology.devices(text)
    assert len(found) == topology.parse(text).chips
    assert found[0].device_kind == kind
  assert {d.slice_index for d in topology.devices("v5e:2x2*2")} == {0, 1}


def test_a_plan_is_compiled_for_tpus(tmp_path):
  pytest.importorskip("libtpu")
  command = [
    sys.executable, "train.py", "--config", "configs/smoke.py", "--plan", "--topology", "v5e:2x2",
    "--json", "--config.mesh.replica=2", "--config.mesh.fsdp=2", "--config.train.batch_size=8",
    "--config.train.accumulate=1", f"--config.data.cache_dir={tmp_path}",
    "--config.model.vocab_size=4096",
  ]  # fmt: skip
  environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
  done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
  assert done.returncode == 0, done.stderr
  facts = json.loads(done.stdout)
  assert (facts["devices"], facts["device"]) == (4, "TPU v5 lite")
  found = facts["compiled"]
  assert found["fits"] and found["unknown_loops"] == []
  assert {"fsdp"} <= {axis for row in found["collectives"] for axis in row["axes"]}
  assert 0 < found["mfu"] < 1
