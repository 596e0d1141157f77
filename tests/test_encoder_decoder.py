"""Encoder-decoders: equal to transformers and torch, no leaks, cached = full pass, counts = leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.cost.flops import exact_flops, xla_flops
from lm.cost.parameters import param_counts
from lm.hf.t5 import t5_from_hf
from lm.models.encoder_decoder import init_cache
from lm.models.registry import make_model
from lm.models.t5 import bucket_table
from lm.models.trees import unstack_layers
from tests.encoder_decoders import SHAPES, changed, model_of, section
from tests.equalities import assert_counts, shapes_of

B, S, L, V = 2, 16, 12, 40


def example(seed=0):
  keys = jax.random.split(jax.random.key(seed), 2)
  return jax.random.randint(keys[0], (B, S), 0, V), jax.random.randint(keys[1], (B, L), 0, V)


def transformers_t5(gated, seed=0):
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  torch.manual_seed(seed)
  config = transformers.T5Config(
    vocab_size=V, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=2,
    relative_attention_num_buckets=8, relative_attention_max_distance=6, dropout_rate=0.0,
    feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=not gated,
    decoder_start_token_id=0,
  )  # fmt: skip
  model = transformers.T5ForConditionalGeneration(config).eval()
  if gated:
    model.lm_head.weight = torch.nn.Parameter(torch.randn(V, 16) * 0.3)
  for name, parameter in model.named_parameters():
    if "relative_attention_bias" in name or "layer_norm" in name:
      parameter.data += torch.randn_like(parameter)
  return torch, model, config


def ours_of(model, config):
  state = {name: array.numpy() for name, array in model.state_dict().items()}
  fields, params = t5_from_hf(state, config.to_dict())
  shape = SHAPES["t5"] | fields
  cfg = section("t5", **shape)
  return make_model(cfg), params


@pytest.mark.parametrize("gated", [False, True], ids=["v1.0", "v1.1"])
def test_t5_equals_transformers(gated):
  """Logits to 1e-4 and the loss to 1e-5, with padded sources."""
  torch, theirs, config = transformers_t5(gated)
  model, params = ours_of(theirs, config)
  source_BS, target_BL = example()
  mask_BS = np.arange(S)[None] < np.array([[S], [9]])
  tokens_BL = np.concatenate([np.zeros((B, 1), np.int32), np.asarray(target_BL)[:, :-1]], axis=1)
  as_torch = lambda a: torch.tensor(np.asarray(a), dtype=torch.long)
  with torch.no_grad():
    out = theirs(
      input_ids=as_torch(source_BS), attention_mask=as_torch(mask_BS), labels=as_torch(target_BL)
    )
  segments = {"source_segments": mask_BS.astype(np.int32), "segments": np.ones((B, L), np.int32)}
  logits_BLV = jax.jit(model.apply)({"params": params}, source_BS, tokens_BL, **segments)
  assert np.ptp(out.logits.numpy()) > 1
  np.testing.assert_allclose(logits_BLV, out.logits.numpy(), atol=1e-4)
  log_p_BLV = jax.nn.log_softmax(logits_BLV)
  loss = -jnp.take_along_axis(log_p_BLV, target_BL[..., None], axis=-1).mean()
  assert float(loss) == pytest.approx(out.loss.item(), rel=1e-5)


@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (8, 6), (16, 50), (64, 300)])
@pytest.mark.parametrize("both", [True, False])
def test_buckets_are_those_of_transformers(buckets, far, both):
  modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
  torch = pytest.importorskip("torch")

  table = bucket_table(buckets, far, both)
  wide = np.arange(-3 * far, 3 * far + 1)
  theirs = modeling.T5Attention._relative_position_bucket(torch.tensor(wide), both, buckets, far)
  np.testing.assert_array_equal(table[np.clip(wide, -far, far) + far], theirs.numpy())


def torch_stacks(torch, params, cfg):
  """torch's own encoder and decoder with our weights."""
  kind = dict(
    d_model=cfg.width, nhead=cfg.heads, dim_feedforward=cfg.mlp_dim, dropout=0.0, activation="relu",
    layer_norm_eps=cfg.norm_eps, batch_first=True, norm_first=cfg.norm_position == "pre",
  )  # fmt: skip
  norm = lambda: torch.nn.LayerNorm(cfg.width, cfg.norm_eps) if cfg.norm_position == "pre" else None
  stacks = {
    "encoder": torch.nn.TransformerEncoder(
      torch.nn.TransformerEncoderLayer(**kind), cfg.depth, norm(), enable_nested_tensor=False
    ),
    "decoder": torch.nn.TransformerDecoder(
      torch.nn.TransformerDecoderLayer(**kind), cfg.decoder_depth, norm()
    ),
  }
  as_torch = lambda a: torch.tensor(np.asarray(a))
  for name, stack in stacks.items():
    for i, layer in enumerate(stack.layers):
      ours = jax.tree.map(lambda a, i=i: a[i], params[name]["blocks"])
      state = {}
      for part, theirs in (("attn", "self_attn"), ("cross", "multihead_attn")):
        if part in ours:
          of = lambda leaf, part=part, ours=ours: [ours[part][n][leaf] for n in "qkv"]
          state[f"{theirs}.in_proj_weight"] = np.concatenate([k.T for k in of("kernel")])
          state[f"{theirs}.in_proj_bias"] = np.concatenate(of("bias"))
          state[f"{theirs}.out_proj.weight"] = ours[part]["out"]["kernel"].T
          state[f"{theirs}.out_proj.bias"] = ours[part]["out"]["bias"]
      for part, theirs in (("up", "linear1"), ("down", "linear2")):
        state[f"{theirs}.weight"] = ours["mlp"][part]["kernel"].T
        state[f"{theirs}.bias"] = ours["mlp"][part]["bias"]
      norms = [n for n in ("attn_norm", "cross_norm", "mlp_norm") if n in ours]
      for number, part in enumerate(norms, start=1):
        state[f"norm{number}.weight"] = ours[part]["scale"]
        state[f"norm{number}.bias"] = ours[part]["bias"]
      layer.load_state_dict({key: as_torch(a) for key, a in state.items()})
    if stack.norm is not None:
      final = params[name]["final_norm"]
      stack.norm.load_state_dict(
        {"weight": as_torch(final["scale"]), "bias": as_torch(final["bias"])}
      )
  return stacks["encoder"].eval(), stacks["decoder"].eval()


def torch_positions(torch, n, width):
  """Vaswani et al. 2017 §3.5, written out: PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i + 1) = cos."""
  table = torch.zeros(n, width)
  for p in range(n):
    for i in range(0, width, 2):
      table[p, i] = np.sin(p / 10_000 ** (i / width))
      table[p, i + 1] = np.cos(p / 10_000 ** (i / width))
  return table


@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_the_transformer_equals_torchs(norm_position):
  """Logits to 1e-4 against torch.nn's layers, embeddings of §3.4 and positions of §3.5, padded sources."""
  torch = pytest.importorskip("torch")
  model, params = model_of("vaswani", norm_position=norm_position, depth=2, decoder_depth=2)
  params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(9), p.shape), params)
  source_BS, tokens_BL = example()
  mask_BS = np.arange(S)[None] < np.array([[S], [9]])
  encoder, decoder = torch_stacks(torch, params, model.cfg)
  table = torch.tensor(np.asarray(params["embed"]["embedding"]))
  enter = lambda ids, n: table[torch.tensor(np.asarray(ids))] * 4.0 + torch_positions(torch, n, 16)
  hidden = torch.tensor(~mask_BS)
  causal = torch.nn.Transformer.generate_square_subsequent_mask(L)
  with torch.no_grad():
    memory = encoder(enter(source_BS, S), src_key_padding_mask=hidden)
    x = decoder(enter(tokens_BL, L), memory, tgt_mask=causal, memory_key_padding_mask=hidden)
    theirs = (x @ table.T).numpy()
  segments = {"source_segments": mask_BS.astype(np.int32), "segments": np.ones((B, L), np.int32)}
  ours = jax.jit(model.apply)({"params": params}, source_BS, tokens_BL, **segments)
  assert np.ptp(theirs) > 1
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["vaswani", "t5"])
def test_nothing_leaks(name):
  """Exact zero gradients: of later target tokens, of padding, of other pairs in a row."""
  model, params = model_of(name)
  source_BS, tokens_BL = example()
  source_segments = jnp.asarray([[1] * 6 + [2] * 7 + [0] * 3] * B)
  segments = jnp.asarray([[1] * 5 + [2] * 5 + [0] * 2] * B)
  table = params["embed"]["embedding"]
  position = 7  # third token of pair 2

  def score(source_BSD, tokens_BLD):
    """The vector at `position`, from embeddings: their gradients say what it depends on."""
    stub = lambda vectors: lambda self, ids: vectors[ids.shape[1]]
    vectors = {S: source_BSD, L: tokens_BLD}
    original = type(model)._enter
    try:
      type(model)._enter = stub(vectors)
      x_BLD = model.apply(
        {"params": params}, source_BS, tokens_BL, source_segments=source_segments,
        segments=segments, method="hidden_pair",
      )  # fmt: skip
    finally:
      type(model)._enter = original
    return (x_BLD[:, position] * jnp.arange(1.0, 17.0)[None]).sum()

  grads = jax.jit(jax.grad(score, argnums=(0, 1)))(table[source_BS], table[tokens_BL])
  source_S, target_L = (np.abs(g).sum(axis=(0, 2)) for g in grads)
  np.testing.assert_array_equal(source_S > 0, [False] * 6 + [True] * 7 + [False] * 3)
  np.testing.assert_array_equal(target_L > 0, [5 <= i <= position for i in range(L)])


@pytest.mark.parametrize("name", ["vaswani", "t5"])
def test_pairs_of_one_row_give_what_each_gives_alone(name):
  model, params = model_of(name)
  source_BS, tokens_BL = example()
  of = lambda lengths, n: np.concatenate([np.full(k, i + 1) for i, k in enumerate(lengths)] + [
    np.zeros(n - sum(lengths), int)
  ])  # fmt: skip
  at = lambda lengths, n: np.concatenate([np.arange(k) for k in (*lengths, n - sum(lengths))])
  row = lambda a: jnp.asarray(np.stack([a] * B), jnp.int32)
  whole = jax.jit(model.apply)(
    {"params": params}, source_BS, tokens_BL,
    source_segments=row(of((6, 7), S)), segments=row(of((5, 4), L)),
    source_positions=row(at((6, 7), S)), positions=row(at((5, 4), L)),
  )  # fmt: skip
  alone = jax.jit(model.apply)({"params": params}, source_BS[:, 6:13], tokens_BL[:, 5:9])
  np.testing.assert_allclose(whole[:, 5:9], alone, atol=1e-5)


@pytest.mark.parametrize(("name", "scan"), [("vaswani", False), ("t5", True)])
def test_written_token_by_token_equals_the_full_pass(name, scan):
  model, params = model_of(name, scan_layers=scan)
  source_BS, tokens_BL = example()
  mask_BS = np.arange(S)[None] < np.array([[S], [9]])
  segments = {"source_segments": mask_BS.astype(np.int32), "segments": np.ones((B, L), np.int32)}
  full = jax.jit(model.apply)({"params": params}, source_BS, tokens_BL, **segments)
  cache = init_cache(model.cfg, B, L)
  call = jax.jit(model.apply, static_argnames="method")
  x, cache = call({"params": params}, source_BS, mask_BS, tokens_BL[:, :1], cache, method="begin")
  parts = [call({"params": params}, x, method="logits")]
  for first, last in ((1, 2), (2, 7), (7, L)):
    logits, cache = call({"params": params}, tokens_BL[:, first:last], cache, method="decode")
    parts.append(logits)
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_layers_in_a_loop_or_not_and_recomputed_give_the_same(name):
  model, params = model_of(name, depth=2, decoder_depth=3)
  source_BS, tokens_BL = example()

  def grads(model, params):
    score = lambda p: (model.apply({"params": p}, source_BS, tokens_BL) ** 2).sum()
    return jax.jit(jax.grad(score))(params)

  plain = unstack_layers(grads(model, params))
  loose = grads(changed(model, scan_layers=False), unstack_layers(params))
  again = unstack_layers(grads(changed(model, remat="dots"), params))
  for other in (loose, again):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4), plain, other)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
  "changes", [{}, {"positions": "learned"}, {"decoder_depth": 1, "head_dim": 5}]
)
def test_counts_and_names_equal_the_leaves(name, changes):
  if name != "vaswani":
    changes = {k: v for k, v in changes.items() if k != "positions"}
  cfg = section(name, **changes)
  assert_counts(cfg)


PUBLISHED = {  # parameters of the released checkpoints
  "t5-small": (60_506_624, {"width": 512, "depth": 6, "heads": 8, "mlp_dim": 2048}),
  "t5-base": (222_903_552, {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072}),
  "t5-v1_1-base": (
    247_577_856,
    {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 2048, "activation": "geglu",
     "tied_embeddings": False},
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_t5_has_its_published_size(name):
  total, fields = PUBLISHED[name]
  cfg = section("t5", vocab_size=32128, head_dim=64, buckets=32, max_distance=128,
                decoder_depth=fields["depth"], **fields)  # fmt: skip
  assert param_counts(cfg).total == total


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_flops_are_xlas(name):
  """Within 3 %, forward and backward, of one row."""
  cfg = section(
    name, width=256, heads=4, mlp_dim=512, seq_len=128, target_len=96, vocab_size=1024,
    scan_layers=False, attention="einsum",
  )  # fmt: skip
  model = make_model(cfg)
  params = shapes_of(model.cfg)
  ids = lambda n: jax.ShapeDtypeStruct((1, n), jnp.int32)
  # Squares: a sum alone has a gradient of ones, whose products XLA leaves out.
  score = lambda p, s, t: jnp.square(model.apply({"params": p}, s, t)).sum()
  compiled = jax.jit(jax.grad(score)).lower(params, ids(128), ids(96)).compile()
  ours = exact_flops(cfg) * (128 + 96)
  assert xla_flops(compiled) == pytest.approx(ours, rel=0.03)
