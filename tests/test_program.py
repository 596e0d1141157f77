"""What the compiled step must hold and must not hold, read from its own text."""

import re

import jax
import pytest

from lm.devices.sharding import make_mesh
from lm.plan import hlo
from lm.plan.collectives import collectives
from lm.setup.hparams import make_hparams
from lm.training.programs import make_programs
from tests.test_step import batch, config

DEPTH, WIDTH, MLP, VOCAB = 3, 32, 96, 264


def compiled(**changes):
  """(text of the optimized step on 8 devices, number of arrays of its state)."""
  cfg = config(n_devices=8, model__vocab_size=VOCAB, model__depth=DEPTH, mesh__replica=1, **changes)
  programs = make_programs(cfg, make_mesh(cfg.mesh))
  as_shape = lambda x, *s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s[0] if s else None)
  state = jax.tree.map(as_shape, programs.run_shape, programs.state_sharding)
  inputs = jax.tree.map(as_shape, (batch(0, cfg), make_hparams(cfg)))
  text = programs.train.lower(state, *inputs).compile().as_text()
  return text, len(jax.tree.leaves(state))


@pytest.fixture(scope="module")
def fsdp():
  return compiled(mesh__fsdp=8)


def test_fsdp_gathers_one_layer_at_a_time(fsdp):
  found = collectives(hlo.parse(fsdp[0]), 8)
  gathered = [one for one in found if one.kind == "all-gather" and one.what.startswith("f32")]
  layer_sizes = {4 * WIDTH * WIDTH, 4 * WIDTH * MLP}
  inside = [one for one in gathered if one.times == DEPTH]
  assert {one.bytes for one in inside} == layer_sizes
  # q, k, v, out, up, gate, down: once forward at least, and again backward.
  assert sum(one.times for one in inside) >= 7 * DEPTH
  # Outside the scanned layers only the table that logits are read from.
  assert {one.bytes for one in gathered if one.times != DEPTH} <= {4 * VOCAB * WIDTH}


def test_the_state_is_donated(fsdp):
  text, n_arrays = fsdp
  aliases = re.search(r"input_output_alias=\{(.*?)\}, entry", text).group(1)
  assert aliases.count("alias)") == n_arrays


@pytest.mark.parametrize("chunk", [None, 4])
def test_no_device_holds_logits_of_the_whole_vocabulary(chunk):
  text, _ = compiled(mesh__fsdp=2, mesh__tensor=4, objective__chunk=chunk)
  program = hlo.parse(text)
  shapes = {a.shape for _, one, _ in hlo.walk(program) for a in one.arrays if a.dtype == "f32"}
  length = chunk or 16
  assert any(
    s[-1:] == (VOCAB // 4,) and 4 * length in (s[0], s[0] * s[1]) for s in shapes if len(s) > 1
  )
  assert not any(s[-1:] == (VOCAB,) and len(s) > 1 and s[0] >= 4 for s in shapes), shapes
  gathered = [one for one in collectives(program, 8) if one.kind == "all-gather"]
  assert all(one.bytes <= 4 * VOCAB // 4 * WIDTH for one in gathered)


def test_a_ring_passes_keys_and_gathers_nothing():
  text, _ = compiled(mesh__sequence=8)
  found = collectives(hlo.parse(text), 8)
  assert not [one for one in found if one.kind in ("all-gather", "all-to-all")]
  piece = 4 * 8 * 2 * WIDTH  # keys, or values, of 8 rows, 2 positions each
  sent = [one for one in found if one.kind == "collective-permute"]
  assert sent and all(one.bytes == piece for one in sent)
  # Forward keys and values go round; backward they go again, with their gradients.
  assert sum(one.times for one in sent) == (2 + 4) * 8 * DEPTH


def test_stacked_runs_exchange_nothing():
  cfg = config()
  programs = make_programs(cfg, make_mesh(cfg.mesh, 4, jax.devices()[:2]), stacked=True)
  as_shape = lambda x, s: jax.ShapeDtypeStruct((4, *x.shape), x.dtype, sharding=s)
  state = jax.tree.map(as_shape, programs.run_shape, programs.state_sharding)
  rows = jax.tree.map(as_shape, batch(0, cfg), programs.batch_sharding)
  hparams = jax.tree.map(lambda x: as_shape(x, programs.scalar_sharding), make_hparams(cfg))
  program = hlo.parse(programs.train.lower(state, rows, hparams).compile().as_text())
  assert not collectives(program, 2)
