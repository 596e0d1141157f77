"""Compiled programs read from their text, against closed forms, XLA's own count and every notation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.plan import hlo
from lm.plan.collectives import collectives, groups, mesh_axes
from lm.plan.hlo_cost import flops, moved_bytes, work

SIZES = {"a": 2, "b": 4}


def program_of(fn, *args, **options):
  compiled = jax.jit(fn, **options).lower(*args).compile()
  return hlo.parse(compiled.as_text()), compiled


def matmul_flops(program):
  return sum(w.times * sum(w.matmul_flops.values()) for w in work(program))


def on_mesh(*specs):
  mesh = Mesh(np.reshape(jax.devices()[:8], tuple(SIZES.values())), tuple(SIZES))
  return [NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs]


@pytest.mark.parametrize("x_spec, w_spec, axes, n", [
  (("a", "b"), ("b", None), ("b",), 4),
  (("b", "a"), ("a", None), ("a",), 2),
  ((None, ("a", "b")), (("a", "b"), None), ("a", "b"), 8),
])  # fmt: skip
def test_a_contraction_over_a_mesh_axis_is_one_all_reduce(x_spec, w_spec, axes, n):
  rows = 16 if x_spec[0] is None else 16 // SIZES[x_spec[0]]
  x_sharding, w_sharding, out = on_mesh(x_spec, w_spec, x_spec[:1])
  arrays = jnp.zeros((16, 32)), jnp.zeros((32, 64))
  program, _ = program_of(
    jnp.matmul, *arrays, in_shardings=(x_sharding, w_sharding), out_shardings=out
  )
  (one,) = collectives(program, 8)
  assert (one.kind, one.times, one.what) == ("all-reduce", 1, f"f32[{rows},64]")
  assert mesh_axes(one.groups, SIZES) == axes
  assert one.bytes == 4 * rows * 64
  assert one.sent == pytest.approx(2 * (n - 1) / n * one.bytes)
  assert matmul_flops(program) == 2 * rows * (32 // n) * 64


def test_a_gather_counts_the_whole_array():
  sharding, out = on_mesh(("b", None), (None, None))
  program, _ = program_of(
    lambda x: x * 2, jnp.zeros((16, 32)), in_shardings=sharding, out_shardings=out
  )
  (one,) = collectives(program, 8)
  assert (one.kind, one.bytes, one.sent) == ("all-gather", 4 * 16 * 32, 3 * 4 * 4 * 32)
  assert mesh_axes(one.groups, SIZES) == ("b",)


def test_loops_count_as_often_as_they_run():
  x_sharding, w_sharding = on_mesh(("a", "b"), (None, "b", None))

  def layers(x, w):
    def outer(x, _):
      return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0], None

    return jax.lax.scan(outer, x, None, length=3)[0]

  program, compiled = program_of(
    layers,
    jnp.zeros((16, 32)),
    jnp.zeros((5, 32, 32)),
    in_shardings=(x_sharding, w_sharding),
    out_shardings=x_sharding,
  )
  products = [c for c in collectives(program, 8) if c.kind in ("all-reduce", "reduce-scatter")]
  assert {c.times for c in products} == {15}
  assert matmul_flops(program) == 15 * 2 * 8 * 8 * 32
  assert compiled.cost_analysis()["flops"] < matmul_flops(program) / 10  # XLA counts bodies once
  assert hlo.unknown_loops(program) == []


def test_a_loop_of_unknown_length_is_named_and_counts_once():
  fn = lambda x: jax.lax.while_loop(lambda x: (x**2).sum() < 9.0, lambda x: x @ x, x)
  program, _ = program_of(fn, jnp.eye(8))
  assert len(hlo.unknown_loops(program)) == 1
  assert matmul_flops(program) == 2 * 8**3


def test_operations_are_those_that_xla_counts():
  """One block's gradient without loops: the two counts differ by XLA's treatment of rare operations."""

  def loss(params, x):
    for w in params:
      x = jax.nn.softmax(jnp.tanh(x @ w) + x, axis=-1)
    return (x**2).sum()

  params = [jnp.ones((64, 64)) for _ in range(3)]
  program, compiled = program_of(jax.grad(loss), params, jnp.ones((128, 64)))
  ours = sum(w.times * w.flops for w in work(program))
  assert ours == pytest.approx(compiled.cost_analysis()["flops"], rel=0.02)


def test_bytes_of_an_elementwise_operation():
  program, _ = program_of(lambda x, y: x * y + 1, jnp.zeros(1000), jnp.zeros(1000))
  assert sum(w.times * w.bytes for w in work(program)) == 3 * 4000


def test_a_slice_of_a_large_array_costs_the_slice():
  fn = lambda x, i: jax.lax.dynamic_index_in_dim(x, i, keepdims=False) + 1
  program, _ = program_of(fn, jnp.zeros((1000, 64)), jnp.int32(3))
  assert sum(w.times * w.bytes for w in work(program)) < 4 * 4 * 64


@pytest.mark.parametrize("text, expected", [
  ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
  ("replica_groups={}", ((0, 1, 2, 3),)),
  ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
  ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={1}", ((0, 2), (1, 3))),
  ("replica_groups=mesh['x'=2,'y'=2] {'y'}, to_apply=%f", ((0, 1), (2, 3))),
  ("replica_groups=mesh['x'=2,'y'=2] {'x'}", ((0, 2), (1, 3))),
  ("replica_groups=mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}", ((0, 2), (1, 3))),
  ("replica_groups=mesh['x'=2,'y'=2], device_ids=(0,2,1,3) {'y'}", ((0, 2), (1, 3))),
  ("replica_groups=mesh['x'=4] {'x':(1)2}", ((0, 2), (1, 3))),
  ("replica_groups=mesh['x'=4] {'x':(2)2}", ((0, 1), (2, 3))),
  ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
])  # fmt: skip
def test_every_notation_of_groups(text, expected):
  assert groups(f"channel_id=1, {text}", 4) == expected


def test_groups_that_span_two_axes():
  assert mesh_axes(((0, 1, 2, 3),), {"x": 2, "one": 1, "y": 2}) == ("x", "y")
  assert mesh_axes(((0, 3), (1, 2)), {"x": 2, "y": 2}) == ("x", "y")


# What only TPUs write: loops without a noted length, products as convolutions whose batch axis is a
# dilated window, on-chip memory S(1), collectives spread over fusions.
TPU = """HloModule m

%body (p: (u32[], f32[4,8])) -> (u32[], f32[4,8]) {
  %p = (u32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i, %two)
  %y = f32[4,8]{1,0:T(8,128)} negate(%x)
  ROOT %out = (u32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}) tuple(%next, %y)
}

%condition (p.1: (u32[], f32[4,8])) -> pred[] {
  %p.1 = (u32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}) parameter(0)
  %i.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=0
  %bound = u32[]{:T(128)} constant(8)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

%starts (q: bf16[64,32]) -> (bf16[64,32], bf16[256,32]) {
  %q = bf16[64,32]{1,0} parameter(0)
  %ag = bf16[256,32]{1,0} all-gather(%q), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, metadata={op_name="jit(f)/w"}
  ROOT %s = (bf16[64,32]{1,0}, bf16[256,32]{1,0}) custom-call(%ag), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (q.1: bf16[64,32]) -> bf16[256,32] {
  %q.1 = bf16[64,32]{1,0} parameter(0)
  ROOT %ag.1 = bf16[256,32]{1,0} all-gather(%q.1), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
}

%slices (big: f32[10,64], at: s32[]) -> f32[1,64] {
  %big = f32[10,64]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[1,64]{1,0} dynamic-slice(%big, %at, %zero), dynamic_slice_sizes={1,64}
}

%nested (all: f32[10,64], which: s32[]) -> f32[1,64] {
  %all = f32[10,64]{1,0} parameter(0)
  %which = s32[] parameter(1)
  %inner = f32[1,64]{1,0} fusion(%all, %which), kind=kLoop, calls=%slices
  ROOT %minus = f32[1,64]{1,0} negate(%inner)
}

ENTRY %main (x0: f32[4,8], w0: bf16[64,32], l: bf16[2,16,8], r: bf16[2,8,32]) -> f32[4,8] {
  %x0 = f32[4,8]{1,0} parameter(0)
  %w0 = bf16[64,32]{1,0} parameter(1)
  %l = bf16[2,16,8]{2,1,0} parameter(2)
  %r = bf16[2,8,32]{2,1,0} parameter(3)
  %one = u32[]{:T(128)} constant(1)
  %copy = u32[]{:T(128)} copy(%one)
  %begin = (u32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}) tuple(%copy, %x0)
  %loop = (u32[]{:T(128)}, f32[4,8]{1,0:T(8,128)S(1)}) while(%begin), condition=%condition, body=%body
  %batched = f32[2,16,32]{2,1,0} convolution(%l, %r), window={size=2 stride=1 lhs_dilate=2}, dim_labels=0bf_0io->0bf
  %layers = f32[10,64]{1,0} parameter(4)
  %layer = s32[] parameter(5)
  %one_layer = f32[1,64]{1,0} fusion(%layers, %layer), kind=kLoop, calls=%nested
  %q4 = bf16[2,4,128,64]{3,2,1,0} parameter(6)
  %splash_fwd.1 = (f32[2,8]{1,0}, bf16[2,4,128,64]{3,2,1,0}) custom-call(%layer, %q4, %q4, %q4), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": 1024
}}, backend_config={"custom_call_config":{"body":""}}
  %splash_dkv.1 = (bf16[1,2,4,128,64]{4,3,2,1,0}, bf16[2,4,128,64]{3,2,1,0}, bf16[2,4,128,64]{3,2,1,0}) custom-call(%layer, %q4, %q4, %q4), custom_call_target="tpu_custom_call"
  %f = (bf16[64,32]{1,0}, bf16[256,32]{1,0}) fusion(%w0), kind=kCustom, calls=%starts
  %g = bf16[256,32]{1,0} fusion(%w0), kind=kCustom, calls=%async_collective_fusion.1
  ROOT %end = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_programs_for_tpus():
  program = hlo.parse(TPU)
  main = program.computations["main"]
  assert hlo.trips(program, "main", main["loop"]) == 4  # 1, 3, 5, 7
  assert [t for _, i, t in hlo.walk(program) if i.name == "y"] == [4]
  assert flops(program, "main", main["batched"]) == ({"bf16": 2 * 2 * 16 * 8 * 32}, 0.0)
  # Written only.
  assert moved_bytes(program, "body", program.computations["body"]["y"]) == 4 * 4 * 8
  (gather,) = collectives(program, 4)
  assert (gather.kind, gather.hidden, gather.bytes, gather.where) == (
    "all-gather",
    True,
    2 * 256 * 32,
    "jit(f)/w",
  )


def test_a_slice_inside_nested_fusions_costs_the_slice():
  program = hlo.parse(TPU)
  main = program.computations["main"]
  assert moved_bytes(program, "main", main["one_layer"]) == 2 * 4 * 64 + 4  # and the index


def test_flash_attention_counts_the_half_that_is_seen():
  """Two products forward, five backward where queries, keys and values get gradients."""
  program = hlo.parse(TPU)
  main = program.computations["main"]
  product = 2 * 2 * 4 * 128 * 128 * 64 / 2
  assert flops(program, "main", main["splash_fwd.1"]) == ({"bf16": 2 * product}, 0.0)
  assert flops(program, "main", main["splash_dkv.1"]) == ({"bf16": 5 * product}, 0.0)


def test_parts_of_a_spread_collective_move_its_bytes_once():
  program = hlo.parse(TPU)
  main = program.computations["main"]
  assert moved_bytes(program, "main", main["f"]) == 2 * (64 + 256) * 32
  assert moved_bytes(program, "main", main["g"]) == 0


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="must have an ENTRY computation"):
    hlo.parse("HloModule nothing\n")
