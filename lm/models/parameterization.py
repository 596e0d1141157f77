"""How initialisation, learning rate and outputs scale with width and depth: one row a kind of weight.

Every weight has a kind: `embed` (token and position tables), `hidden` (both sides grow with
width), `readout` (the output head), `vector` (biases and norm scales). With r = width / base_width,
the base model's initial standard deviation, the learning rate and the output of a kind are
multiplied by r ** exponent; `attention`, the scale of query-key products, goes by
r = head_dim / base_head_dim. At r = 1 all parameterizations are the same model.

mup is table 8 of Yang et al. 2022, arXiv:2203.03466, the form that allows tied embeddings: stds
as in its rows, 1 / fan_in of the output weights as a multiplier. A tied table is initialised and
trained as `embed` and multiplied as `readout`, whose other columns agree. Everett et al. 2024,
arXiv:2407.05872, table 1, for the view of parameterizations as exponents.

completep is table 1 of Dey et al. 2025, arXiv:2505.01618, with alpha = 1: muP's rows, Adam's epsilon and
coupled weight decay that go with them, and every residual branch divided by depth / base_depth. Its rows are
Adam's. The learning rate of what is in a branch goes by that ratio to the alpha - 1, which is 1.

spectral is the condition of Yang, Simon & Bernstein 2023, arXiv:2310.17813 (eq. 1 and §3): weights and
their updates have spectral norms of order sqrt(fan_out / fan_in). Where the vocabulary stays, that is muP
with 1 / r in the output weights' std and rate instead of their output: the same training, as a factor of a
weight can be moved into its std and rate (Yang et al. 2022, lemma J.1). It needs output weights of their own.

umup is table 2 of Blake et al. 2024, arXiv:2407.17465: muP's rows, the embedding's learning rate by
1 / sqrt(r), and every residual branch, and the rate of what is in it, by 1 / sqrt(depth / base_depth). Its
rows are Adam's. That paper also gives all tensors unit scale at the start, for 8-bit formats; these do not.
"""

from typing import NamedTuple


class Exponents(NamedTuple):
  init: float | None  # of the standard deviation; None: model.init's own at the actual width
  lr: float  # of the learning rate, Adam-like optimizers
  sgd_lr: float  # of gradient descent's, whose update is in units of the gradient
  output: float  # of the value that the weight produces
  eps: float = 0  # of Adam's epsilon
  decay: float = 0  # of weight decay that is coupled to the learning rate


class DepthExponents(NamedTuple):
  """Exponents of depth / base_depth by which quantities of residual branches scale; nothing else scales."""

  output: float = 0  # of what a branch adds
  lr: float = 0  # of the learning rate of its weights
  eps: float = 0  # of Adam's epsilon of its weights


TABLE = {
  "standard": {
    "embed": Exponents(None, 0, 0, 0),
    "hidden": Exponents(None, 0, 0, 0),
    "readout": Exponents(None, 0, 0, 0),
    "vector": Exponents(None, 0, 0, 0),
    "attention": Exponents(None, 0, 0, 0),  # no weight: `output` scales query-key products
  },
  "mup": {
    "embed": Exponents(0, 0, 1, 0),
    "hidden": Exponents(-0.5, -1, 0, 0),
    "readout": Exponents(0, 0, 1, -1),
    "vector": Exponents(0, 0, 1, 0),
    "attention": Exponents(0, 0, 0, -0.5),  # 1/K instead of 1/sqrt(K)
  },
  "completep": {
    "embed": Exponents(0, 0, 1, 0, eps=-1),
    "hidden": Exponents(-0.5, -1, 0, 0, eps=-1, decay=1),
    "readout": Exponents(0, 0, 1, -1, eps=-1),
    "vector": Exponents(0, 0, 1, 0, eps=-1),
    "attention": Exponents(0, 0, 0, -0.5),
  },
  "spectral": {
    "embed": Exponents(0, 0, 1, 0),
    "hidden": Exponents(-0.5, -1, 0, 0),
    "readout": Exponents(-1, -1, -1, 0),
    "vector": Exponents(0, 0, 1, 0),
    "attention": Exponents(0, 0, 0, -0.5),
  },
  "umup": {
    "embed": Exponents(0, -0.5, 1, 0),
    "hidden": Exponents(-0.5, -1, 0, 0),
    "readout": Exponents(0, 0, 1, -1),
    "vector": Exponents(0, 0, 1, 0),
    "attention": Exponents(0, 0, 0, -0.5),
  },
}
DEPTH = {
  "standard": DepthExponents(),
  "mup": DepthExponents(),
  "completep": DepthExponents(output=-1, eps=-1),
  "spectral": DepthExponents(),
  "umup": DepthExponents(output=-0.5, lr=-0.5),
}


def multiplier(parameterization: str, kind: str, what: str, ratio: float) -> float:
  """ratio ** exponent, for `what` in "init", "lr", "sgd_lr", "output", "eps", "decay".

  >>> multiplier("mup", "hidden", "lr", 4.0)
  0.25
  """
  exponent = getattr(TABLE[parameterization][kind], what)
  return 1.0 if exponent is None else float(ratio) ** exponent


def branch_multiplier(parameterization: str, what: str, ratio: float) -> float:
  """ratio ** exponent of residual branches, for `what` in "output", "lr", "eps"; ratio is depth / base_depth.

  >>> branch_multiplier("completep", "output", 4.0)
  0.25
  """
  return float(ratio) ** getattr(DEPTH[parameterization], what)


def needs_readout(parameterization: str) -> bool:
  """Whether it scales output weights themselves, which an embedding that they are tied to cannot follow."""
  readout = TABLE[parameterization]["readout"]
  return bool(readout.init) and not readout.output


def scales_depth(parameterization: str) -> bool:
  """True if the parameterization scales anything with depth."""
  return any(DEPTH[parameterization])
