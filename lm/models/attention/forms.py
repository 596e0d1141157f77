"""Attention in the forms that are fastest somewhere, equal up to rounding.

q_BLHK has H heads, k_BMGK and v_BMGK have G, a divisor of H: query heads g H/G .. (g + 1) H/G - 1
read kv head g (Ainslie et al. 2023, arXiv:2305.13245). Below, P = H/G is an axis of its own and
heads come before positions. Scores and softmax are float32 whatever the inputs.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm.config.errors import ConfigError
from lm.devices import sharding
from lm.devices.sharding import ACTIVATION_RULES, activation_spec, current_mesh, mesh_ways
from lm.models.attention.blockwise import KEEP, chunked, ring
from lm.models.attention.scores import (
  AttentionConfig,
  ScoreRule,
  Terms,
  alibi_slopes,
  allowed,
  heads_first,
  heads_last,
  masked_scores,
  score_scale,
  sees,
  sight,
)

GPUS = ("gpu", "cuda")
SPLASH_BLOCK = 128  # tokens; lengths must be multiples of it
SPLASH_LANES = 64  # head widths must be multiples of it

__all__ = ["alibi_slopes", "attend", "attend_cached", "choose_form", "score_scale"]


def attend(
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  v_BMGK: jax.Array,
  cfg: AttentionConfig,
  segments_BL: jax.Array | None = None,
  *,
  causal: bool = True,
  key_segments_BM: jax.Array | None = None,
  key_mask_BM: jax.Array | None = None,
  bias_BHLM: jax.Array | None = None,
  offset: int = 0,
  scale: float | None = None,
) -> jax.Array:
  """softmax(mask(softcap(scale q k^T) + bias - slope distance)) v.

  Query i is at position offset + i, key j at position j. A query sees the keys that lie, all at once,
    causal: at its own position or before it;
    within the window: 0 <= distance < window, or |distance| < window where not causal;
    in its segment, and where key_mask_BM is True.
  A query that sees none gives 0 and has no gradient.

  Args:
    q_BLHK: queries, float32 or bfloat16; k_BMGK and v_BMGK alike. Keys may come from elsewhere.
    cfg: positions (alibi, by |distance|), window, attention_softcap, attention (the form), dtype
      and, for the scale, head_dim, base_head_dim and parameterization are read.
    segments_BL: int32 document ids; a position sees its own document only. None = one document.
    key_segments_BM: those of the keys; None = segments_BL, for keys from the same row.
    key_mask_BM: bool, False for keys that nothing sees (padding); None = all can be seen.
    bias_BHLM: finite, [1 or B, H, L, M], added to the scores; differentiable.
    offset: position of the first query, such as the length of a memory before it.
    scale: of query-key products; None = score_scale(cfg).

  Returns:
    [B, L, H, K] in the dtype of q.

  Raises:
    ConfigError: a form that lacks what is asked for, or a mesh that does not divide an axis.
  """
  (L, H), M = q_BLHK.shape[1:3], k_BMGK.shape[1]
  masked = key_mask_BM is not None or key_segments_BM is not None
  if segments_BL is not None and key_segments_BM is None:
    key_segments_BM = segments_BL
  slopes_H = alibi_slopes(H) if cfg.positions == "alibi" else None
  terms = Terms(segments_BL, key_segments_BM, key_mask_BM, slopes_H, bias_BHLM)
  _check_shapes(q_BLHK, k_BMGK, terms)
  rule = ScoreRule(
    causal=causal,
    window=cfg.window,
    softcap=cfg.attention_softcap,
    scale=score_scale(cfg) if scale is None else scale,
    offset=offset,
    blind=masked or (cfg.window is not None and offset + L > M),
  )
  mesh = current_mesh()
  if mesh is None:
    return _attend(q_BLHK, k_BMGK, v_BMGK, terms, rule, cfg)
  G = k_BMGK.shape[2]
  kv_heads = "act_kv_heads"
  if G % mesh_ways(mesh, ACTIVATION_RULES[kv_heads]):  # fewer than devices: one a query head
    k_BMGK, v_BMGK = (jnp.repeat(x, H // G, axis=2) for x in (k_BMGK, v_BMGK))
  spec = lambda names, x: None if x is None else activation_spec(mesh, names, x.shape)
  row = ("batch", "length")
  q_spec = spec((*row, "act_heads", "act_head_dim"), q_BLHK)
  kv_spec = spec((*row, kv_heads, "act_head_dim"), k_BMGK)
  bias_spec = None
  if bias_BHLM is not None:  # a device holds all keys of its own queries
    batch, length, heads, _ = q_spec
    bias_spec = PartitionSpec(None if bias_BHLM.shape[0] == 1 else batch, heads, length, None)
  rows = (spec(row, segments_BL), spec(row, key_segments_BM), spec(row, key_mask_BM))
  specs = (q_spec, kv_spec, kv_spec, Terms(*rows, spec(("act_heads",), slopes_H), bias_spec))
  axis = ACTIVATION_RULES["length"]

  def local(*args):
    n = mesh_ways(mesh, axis)
    return ring(*args, rule, axis, n) if n > 1 else _attend(*args, rule, cfg)

  on_mesh = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=q_spec, check_vma=False)
  return on_mesh(q_BLHK, k_BMGK, v_BMGK, terms)


def attend_cached(
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  v_BMGK: jax.Array,
  index_BL: jax.Array,
  cfg: AttentionConfig,
  *,
  causal: bool = True,
  segments_BL: jax.Array | None = None,
  key_segments_BM: jax.Array | None = None,
  key_mask_BM: jax.Array | None = None,
  bias_BHLM: jax.Array | None = None,
  scale: float | None = None,
) -> jax.Array:
  """`attend` for queries at index_BL (int32 [B or 1, L]) of rows whose keys lie at 0..M-1.

  Always in the reference form. key_segments_BM is needed where segments_BL is given.
  """
  slopes_H = alibi_slopes(q_BLHK.shape[2]) if cfg.positions == "alibi" else None
  terms = Terms(segments_BL, key_segments_BM, key_mask_BM, slopes_H, bias_BHLM)
  _check_shapes(q_BLHK, k_BMGK, terms)
  blind = key_mask_BM is not None or segments_BL is not None or cfg.window is not None
  scale = score_scale(cfg) if scale is None else scale
  rule = ScoreRule(causal, cfg.window, cfg.attention_softcap, scale, offset=0, blind=blind)
  key_index_M = jnp.arange(k_BMGK.shape[1], dtype=jnp.int32)
  distance_BLM = index_BL[:, :, None] - key_index_M[None, None, :]
  seen = (distance_BLM, allowed(*terms[:3]), bias_BHLM)
  return _plain(q_BLHK, k_BMGK, v_BMGK, seen, slopes_H, rule)


def choose_form(
  cfg: AttentionConfig,
  lengths: tuple[int, int] | None = None,
  *,
  biased: bool = False,
  masked: bool = False,
) -> str:
  """The form that model.attention names, or for "auto" the fastest one on this platform.

  Forward and backward of one layer at [16, 256, 6, 64] on 2 CPU cores, in ms of processor time
  (float32 / bfloat16): chunked 69 / 72, einsum 99 / 111, xla 127 / 130.

  Args:
    lengths: of queries and keys; None = cfg.seq_len for both.
    biased: whether scores get a bias that is learned.
    masked: whether sight depends on the row, or reaches to both sides within a window.

  Raises:
    ConfigError: a library form that lacks what the config asks for.
  """
  lengths = (cfg.seq_len, cfg.seq_len) if lengths is None else lengths
  platform = sharding.platform()
  if cfg.attention in ("xla", "cudnn") and cfg.attention_softcap is not None:
    raise ConfigError(
      f"model.attention={cfg.attention}: has no model.attention_softcap; use auto or einsum"
    )
  if cfg.attention == "cudnn" and (platform not in GPUS or cfg.dtype != "bfloat16"):
    raise ConfigError(
      f"model.attention=cudnn: needs an NVIDIA GPU and model.dtype=bfloat16, not {platform} and "
      f"{cfg.dtype}; use auto"
    )
  if cfg.attention in ("cudnn", "splash") and biased:
    raise ConfigError(f"model.attention={cfg.attention}: has no position biases; use auto")
  odd = masked and any(n % 2 for n in lengths)
  if cfg.attention == "cudnn" and odd:
    raise ConfigError(
      f"model.attention=cudnn: needs an even number of queries and keys where some are masked, not "
      f"{lengths[0]} and {lengths[1]}; use auto"
    )
  whole = not any(n % SPLASH_BLOCK for n in lengths) and cfg.head_dim % SPLASH_LANES == 0
  if cfg.attention == "splash" and (cfg.positions == "alibi" or not whole):
    raise ConfigError(
      f"model.attention=splash: has no alibi and needs model.seq_len={lengths[0]} in multiples of "
      f"{SPLASH_BLOCK} and model.head_dim={cfg.head_dim} of {SPLASH_LANES}; use auto"
    )
  if cfg.attention != "auto":
    return cfg.attention
  if platform == "tpu" and whole and cfg.positions != "alibi" and not biased:
    return "splash"
  if platform == "cpu" or cfg.attention_softcap is not None:
    return "chunked"
  flash = cfg.dtype == "bfloat16" and cfg.head_dim % 8 == 0 and cfg.head_dim <= 128
  flash = flash and cfg.positions != "alibi" and not biased and not odd
  return "cudnn" if platform in GPUS and flash else "xla"


# --- forms ----------------------------------------------------------------------------------------


def _attend(q_BLHK, k_BMGK, v_BMGK, terms, rule, cfg):
  """`attend` on one device, for the heads at hand."""
  lengths = q_BLHK.shape[1], k_BMGK.shape[1]
  form = "chunked"
  if cfg.attention != "splash" or not any(n % SPLASH_BLOCK for n in lengths):
    # Other rows are shorter than the model's, such as the one token that initialisation traces.
    two_sided = rule.window is not None and not rule.causal
    masked = rule.blind or terms.segments_BL is not None or two_sided or rule.offset > 0
    form = choose_form(cfg, lengths, biased=terms.bias_BHLM is not None, masked=masked)
  if form in ("xla", "cudnn"):
    return _library(q_BLHK, k_BMGK, v_BMGK, terms, rule, form)
  if form == "splash":
    return _splash(q_BLHK, k_BMGK, v_BMGK, terms, rule)
  if form == "chunked":
    return chunked(q_BLHK, k_BMGK, v_BMGK, terms, rule)
  return _plain(q_BLHK, k_BMGK, v_BMGK, sight(*lengths, terms, rule), terms.slopes_H, rule)


def _plain(q_BLHK, k_BMGK, v_BMGK, seen, slopes_H, rule):
  """The reference: all scores at once, differentiated by jax."""
  q_BGPLK, k_BGMK, v_BGMK = heads_first(q_BLHK, k_BMGK, v_BMGK)
  scores, _ = masked_scores(q_BGPLK, k_BGMK, seen, slopes_H, rule)
  weights = jax.nn.softmax(scores, axis=-1).astype(v_BGMK.dtype)
  out_BLHK = heads_last(jnp.einsum("BGPLM,BGMK->BGPLK", weights, v_BGMK))
  return _where_seen(out_BLHK, *seen[:2], rule)


def _where_seen(out_BLHK, distance_BLM, allowed_BLM, rule):
  """0 in place of the mean of all values, which a softmax of hidden scores gives."""
  if not rule.blind:
    return out_BLHK
  visible_BLM = sees(distance_BLM, rule)
  if allowed_BLM is not None:
    visible_BLM = visible_BLM & allowed_BLM
  return jnp.where(visible_BLM.any(axis=-1)[:, :, None, None], out_BLHK, 0)


def _library(q_BLHK, k_BMGK, v_BMGK, terms, rule, implementation):
  """jax.nn.dot_product_attention; "cudnn" never holds the scores."""
  distance_1LM, allowed_BLM, bias = sight(q_BLHK.shape[1], k_BMGK.shape[1], terms, rule)
  if terms.slopes_H is not None:
    apart_1LM = distance_1LM if rule.causal else abs(distance_1LM)
    of_distance = -terms.slopes_H[None, :, None, None] * apart_1LM[:, None].astype(jnp.float32)
    of_distance = jnp.asarray(
      of_distance, q_BLHK.dtype if implementation == "cudnn" else jnp.float32
    )
    bias = of_distance if bias is None else bias.astype(jnp.float32) + of_distance
  is_causal = rule.causal and rule.offset == 0
  mask_BLM, window = allowed_BLM, None
  if rule.window is not None and is_causal:
    window = (rule.window - 1, 0)
  elif rule.offset or rule.window is not None:  # in the mask: cuDNN's own window is causal
    mask_BLM = jnp.asarray(sees(distance_1LM, rule))
    mask_BLM = mask_BLM if allowed_BLM is None else mask_BLM & allowed_BLM
  out_BLHK = jax.nn.dot_product_attention(
    q_BLHK,
    k_BMGK,
    v_BMGK,
    bias=bias,
    mask=None if mask_BLM is None else mask_BLM[:, None],
    scale=rule.scale,
    is_causal=is_causal,
    local_window_size=window,
    implementation=implementation,
  )
  return _where_seen(out_BLHK, distance_1LM, allowed_BLM, rule)


def _splash(q_BLHK, k_BMGK, v_BMGK, terms, rule):
  """The Pallas kernel for TPUs that skips blocks out of sight; interpreted elsewhere, for tests."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  (L, H), (M, G) = q_BLHK.shape[1:3], k_BMGK.shape[1:3]
  if rule.window is not None:
    reach = (rule.window - 1, 0 if rule.causal else rule.window - 1)
    visible = splash.LocalMask((L, M), reach, offset=rule.offset)
  elif rule.causal:
    visible = splash.CausalMask((L, M), offset=rule.offset)
  else:
    visible = splash.FullMask((L, M))
  block_of = lambda n: next(size for size in (512, 256, SPLASH_BLOCK) if n % size == 0)
  sizes = {f"block_{name}": block_of(L) for name in ("q", "q_dkv", "q_dq")}
  sizes |= {
    f"block_{name}": block_of(M)
    for name in ("kv", "kv_compute", "kv_dkv", "kv_dkv_compute", "kv_dq")
  }
  kernel = splash.make_splash_mqa_single_device(
    splash.MultiHeadMask([visible] * (H // G)),
    block_sizes=splash.BlockSizes(**sizes),
    attn_logits_soft_cap=rule.softcap,
    residual_checkpoint_name=KEEP,
    interpret=sharding.platform() != "tpu",
  )
  q_BGPLK, k_BGMK, v_BGMK = heads_first(q_BLHK * rule.scale, k_BMGK, v_BMGK)
  segments_BL, key_segments_BM, key_mask_BM = terms[:3]
  if key_mask_BM is not None:  # as a segment that no query is of
    if segments_BL is None:
      segments_BL = jnp.zeros(q_BLHK.shape[:2], jnp.int32)
      key_segments_BM = jnp.zeros(k_BMGK.shape[:2], jnp.int32)
    nobody = jnp.minimum(segments_BL.min(), 0) - 1
    key_segments_BM = jnp.where(key_mask_BM, key_segments_BM, nobody)
  segments = None if segments_BL is None else splash.SegmentIds(segments_BL, key_segments_BM)
  over_groups = jax.vmap(kernel, in_axes=(0, 0, 0, None))
  over_rows = jax.vmap(over_groups, in_axes=(0, 0, 0, None if segments is None else 0))
  out_BLHK = heads_last(over_rows(q_BGPLK, k_BGMK, v_BGMK, segments))
  seen = sight(L, M, terms, rule)
  return _where_seen(out_BLHK, *seen[:2], rule)


def _check_shapes(q_BLHK, k_BMGK, terms):
  """ValueError for arrays that do not fit each other: a caller's mistake."""
  (B, L, H), M = q_BLHK.shape[:3], k_BMGK.shape[1]
  if (terms.segments_BL is None) != (terms.key_segments_BM is None):
    raise ValueError("segments_BL and key_segments_BM: both or neither must be given")
  wanted = Terms((B, L), (B, M), (B, M), (H,), (B, H, L, M))
  for name, array, shape in zip(Terms._fields, terms, wanted, strict=True):
    shapes = [shape, (1, *shape[1:])] if name == "bias_BHLM" else [shape]
    if array is not None and array.shape not in shapes:
      raise ValueError(
        f"{name}: has shape {array.shape}, must have {' or '.join(map(str, shapes))}"
      )
