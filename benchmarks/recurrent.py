"""An LSTM language model of words, trained here and in torch from the same weights on the same batches.

Zaremba et al. 2014's small setting (configs/lstm.py:small) at a constant rate. The table shows the perplexity
of both on the same held-out words as training goes on, and words/s; it fails where they differ by more than
5 %. torch's norm of a float32 gradient of millions of numbers, which its clipping divides by, is off by some
1e-4 on a CPU, and at large rates that grows: so by default the norm alone is taken in float64 (--torch norm);
float32 is torch as it is, float64 all of it in float64.

examples:
  python benchmarks/recurrent.py --train wikitext-2/train.txt --valid wikitext-2/valid.txt
  python benchmarks/recurrent.py --train train.txt --valid valid.txt --steps 2000 --set model.cell=gru
"""

import argparse
import dataclasses
import math
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import bench

TOLERANCE = 0.05


def main() -> int:
  parser = bench.make_parser(__doc__)
  parser.add_argument("--train", required=True, help="text file, one sentence or paragraph a line")
  parser.add_argument("--valid", required=True, help="another one")
  parser.add_argument("--steps", type=int, default=300, help="batches of 20 rows of 20 words")
  parser.add_argument("--evals", type=int, default=3, help="evaluations on the way")
  parser.add_argument(
    "--torch",
    choices=("float32", "norm", "float64"),
    default="norm",
    help="what is in float64 there",
  )
  parser.add_argument("--words", type=int, default=20_000, help="held-out words, at most")
  options = parser.parse_args()
  return compare(options)


def compare(options: argparse.Namespace) -> int:
  import jax

  from lm.devices.sharding import make_mesh
  from lm.evaluate import evaluate_sets
  from lm.objectives.registry import objective_of
  from lm.setup.hparams import make_hparams
  from lm.setup.load import load_config
  from lm.setup.resolve import kind_of, resolve
  from lm.training.programs import make_programs

  overrides = {
    "data.sources": f"text:{options.train}", "eval.sets": f"valid=text:{options.valid}",
    "train.tokens": None, "train.steps": options.steps, "optim.schedule": "constant", "optim.peak_lr": 1.0,
    "eval.tokens": options.words, "data.reshuffle": False,
  }  # fmt: skip
  overrides |= dict(setting.split("=", 1) for setting in options.set)
  cfg = load_config(str(bench.ROOT / "configs/lstm.py:small"), overrides)
  kind = kind_of(cfg)
  data = kind.open(cfg)
  cfg = resolve(cfg, data.vocab_size, 1)
  mesh = make_mesh(cfg.mesh, devices=jax.devices()[:1])
  programs, objective = make_programs(cfg, mesh), objective_of(cfg.objective)
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  state = programs.init(hparams)
  peer = Torch(cfg, jax.device_get(state.params), options.torch)
  batches = kind.train(data, cfg)
  held = {"valid": kind.evaluate(kind.sets(data, cfg)["valid"], cfg, cfg.eval.tokens, None)}
  per_step = cfg.train.batch_size * cfg.model.seq_len
  print(f"{cfg.model.vocab_size:,} words, {per_step} a step, {held['valid'].n_targets:,} held out")
  print(f"{'step':>6} {'ours':>9} {'torch':>9} {'ratio':>7} {'words/s':>9} {'torch':>9}")
  seconds, ratio, every = [0.0, 0.0], 1.0, max(1, options.steps // options.evals)
  for step in range(options.steps):
    batch = batches.at(step)
    start = time.perf_counter()
    rows = jax.device_put(batch, programs.batch_sharding)
    state, metrics = programs.train(state, rows, hparams)
    jax.block_until_ready(metrics)
    middle = time.perf_counter()
    peer.update(batch)
    if step:  # the first one compiles
      seconds[0] += middle - start
      seconds[1] += time.perf_counter() - middle
    if (step + 1) % every and step + 1 < options.steps:
      continue
    found = evaluate_sets(programs, objective, state.params, state.extra, hparams, held)[0]
    ours, theirs = (math.exp(loss) for loss in (found["eval/valid/loss"], peer.loss(held["valid"])))
    ratio = ours / theirs
    speeds = [step * per_step / max(s, 1e-9) for s in seconds]
    print(
      f"{step + 1:6} {ours:9.2f} {theirs:9.2f} {ratio:7.4f} {speeds[0]:9,.0f} {speeds[1]:9,.0f}"
    )
    row = {"step": step + 1, "perplexity": ours, "torch": theirs, "words_per_sec": speeds[0]}
    row |= {"torch_words_per_sec": speeds[1], "model": dataclasses.asdict(cfg.model)}
    bench.append(options.out, "recurrent", row | bench.about())
  return 0 if abs(ratio - 1) <= TOLERANCE else 1


class Torch:
  """The same model of torch.nn's layers, with torch.optim's SGD and its clipping."""

  def __init__(self, cfg, params, precision):
    import torch
    from torch import nn

    torch.set_num_threads(os.cpu_count() or 1)
    self.torch, self.cfg, self.precision, model = torch, cfg, precision, cfg.model
    kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[model.cell]
    hidden = model.hidden_dim or model.width
    self.layers = kind(model.width, hidden, model.depth, batch_first=True)
    self.embed, self.head = (
      nn.Embedding(model.vocab_size, model.width),
      nn.Linear(hidden, model.vocab_size),
    )
    as_tensor = lambda array: torch.tensor(array.copy())
    self.embed.weight.data = as_tensor(params["embed"]["embedding"])
    self.head.weight.data = as_tensor(params["head"]["kernel"].T)
    self.head.bias.data = as_tensor(params["head_bias"])
    for i in range(model.depth):
      mine = params[f"layer_{i}"]
      for theirs, ours in (("weight_ih", "input_kernel"), ("weight_hh", "recurrent_kernel")):
        getattr(self.layers, f"{theirs}_l{i}").data = as_tensor(mine[ours].T)
      for theirs, ours in (("bias_ih", "input_bias"), ("bias_hh", "recurrent_bias")):
        getattr(self.layers, f"{theirs}_l{i}").data = as_tensor(mine[ours])
    modules = (self.embed, self.layers, self.head)
    if precision == "float64":
      modules = tuple(module.double() for module in modules)
    self.weights = [p for module in modules for p in module.parameters()]
    self.optimizer = torch.optim.SGD(self.weights, cfg.optim.peak_lr)
    self.carry = None

  def _sum(self, batch, carry):
    """(sum of cross-entropies, the state after the batch)."""
    tensor = lambda name: self.torch.from_numpy(batch[name].copy())
    x, carry = self.layers(self.embed(tensor("tokens").long()), carry)
    logits = self.head(x).flatten(0, 1)
    targets = tensor("targets").long().flatten()
    losses = self.torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return (losses * tensor("weights").to(losses.dtype).flatten()).sum(), carry

  def update(self, batch) -> None:
    carry = self.carry
    if carry is not None:
      carry = tuple(part.detach() for part in carry) if isinstance(carry, tuple) else carry.detach()
    total, self.carry = self._sum(batch, carry)
    self.optimizer.zero_grad()
    (total / float(batch["weights"].sum())).backward()
    most, clip = self.cfg.optim.clip_norm, self.torch.nn.utils
    if self.precision != "norm":
      clip.clip_grad_norm_(self.weights, most)
    else:
      squares = sum(p.grad.double().square().sum() for p in self.weights)
      clip.clip_grads_with_norm_(self.weights, most, squares.sqrt().float())
    self.optimizer.step()

  def loss(self, batches) -> float:
    """Nats per word of evaluation batches, in order."""
    total, carry = 0.0, None
    with self.torch.no_grad():
      for batch in batches:
        part, carry = self._sum(batch, carry)
        total += float(part)
    return total / batches.n_targets


if __name__ == "__main__":
  sys.exit(main())
