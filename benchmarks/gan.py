"""Does adversarial training write better sentences than maximum likelihood? The language's oracle judges.

Three runs of configs/gan.py on one oracle: maximum likelihood for as long as the GAN's first phase (before),
the GAN, and maximum likelihood for as long as all of the GAN. With `--rates` there are two for each, which
start from `before`: a GAN that plays at that rate of the generator, while the critic keeps its own, and as
many steps of maximum likelihood at that rate, as a smaller rate alone may help. Of each run,
`--samples` sentences are drawn at several temperatures, as a model can trade quality for variety by its
temperature alone (Caccia et al. 2020, arXiv:1811.02549): quality is the oracle's NLL of them (nats a
character; that of real sentences stands below the table), variety the NLL of held-out real sentences under
the model, and how many of all pairs of neighbouring characters are different ones (distinct-2). Sentences
with a character that the oracle does not have are left out of the mean; their share is said where there are
any.

examples:
  python benchmarks/gan.py --size gumbel
  python benchmarks/gan.py --size seqgan --rates 1e-3,1e-4
"""

import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import train
from benchmarks.bench import make_parser
from lm.data.sources import oracle
from lm.optim.chain import read_groups
from lm.runs.load import load
from lm.setup.load import load_config

TEMPERATURES = (0.8, 0.9, 1.0, 1.1)


def main(argv: list[str]) -> int:
  parser = make_parser(__doc__)
  parser.add_argument("--size", default="gumbel", help="of configs/gan.py")
  parser.add_argument("--samples", type=int, default=2000, help="sentences drawn of each model")
  parser.add_argument("--rates", help="of the generator once it plays, with commas")
  parser.add_argument("--root", default="runs/gan", help="where the runs are kept")
  options = parser.parse_args(argv)
  spec = f"configs/gan.py:{options.size}"
  cfg = load_config(str(ROOT / "configs" / "gan.py") + f":{options.size}", {})
  first, whole = cfg.objective.likelihood_steps, cfg.train.steps
  workdir_of = lambda kind: pathlib.Path(options.root) / f"{options.size}-{kind}"
  settings = {"before": {"train.steps": first, "objective.likelihood_steps": first}}
  if options.rates:
    for text in options.rates.split(","):
      gan = settings[f"gan-{text}"] = from_likelihood(cfg, float(text), workdir_of("before"))
      settings[f"likelihood-{text}"] = gan | {"objective.likelihood_steps": gan["train.steps"]}
  else:
    settings["gan"] = {}
  settings["likelihood"] = {"objective.likelihood_steps": whole}
  rows, name = [], cfg.data.sources[0].partition(":")[2]
  for kind, changes in settings.items():
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    flags += [f"--config.{text}" for text in options.set]
    code = train.main(["--config", spec, "--workdir", str(workdir_of(kind)), *flags])
    if code:
      return code
    before = first if "train.init_from" in changes else 0
    rows.append(row(kind, workdir_of(kind), name, options.samples, before))
  real = oracle.nll(name, list(oracle.read(f"{name}-n{options.samples}", spec))).mean()
  print(f"\n{'':16} {'steps':>6} {'held-out':>9} {'distinct-2':>10}  oracle's NLL at temperature")
  print(" " * 46 + "".join(f"{t:8}" for t in TEMPERATURES))
  for each in rows:
    scores = "".join(f"{score:8.3f}" for score in each["oracle_nll"])
    print(
      f"{each['kind']:16} {each['steps']:6} {each['held_out']:9.4f} {each['distinct']:10.3f}  {scores}"
      + f"  {each['impossible']:.1%} left out" * (each["impossible"] > 0)
    )
  print(f"real sentences {real:.3f} nats a character")
  with pathlib.Path(options.out).open("a", encoding="utf-8") as file:
    for each in rows:
      file.write(
        json.dumps({"benchmark": "gan", "size": options.size, "real": real, **each}) + "\n"
      )
  return 0


def from_likelihood(cfg, rate: float, before: pathlib.Path) -> dict[str, object]:
  """What turns a run into the rest of a GAN whose likelihood steps are those of `before`.

  The optimizer begins anew; the critic keeps the rate that the config gives it.
  """
  critic = cfg.optim.peak_lr * read_groups(cfg.optim.groups)[0].lr
  return {
    "train.init_from": before,
    "train.steps": cfg.train.steps - cfg.objective.likelihood_steps,
    "objective.likelihood_steps": 0,
    "optim.peak_lr": rate,
    "optim.groups": f"critic:lr={critic / rate:g}",
  }


def row(kind: str, workdir: pathlib.Path, name: str, samples: int, before: int) -> dict:
  """Scores of a finished run, which starts from one of `before` steps."""
  found = load(workdir, "latest")
  length = oracle.parse(name, name).length
  scores, distinct, impossible = [], 0.0, 0.0
  for temperature in TEMPERATURES:
    texts = found.generate([""] * samples, length, temperature)
    nll = oracle.nll(name, texts)
    scores.append(float(nll[np.isfinite(nll)].mean()))
    impossible = max(impossible, float(np.mean(~np.isfinite(nll))))
    if temperature == 1.0:
      pairs = [text[i : i + 2] for text in texts for i in range(len(text) - 1)]
      distinct = len(set(pairs)) / len(pairs)
  last = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  held_out = [record["eval/val/loss"] for record in last if "eval/val/loss" in record][-1]
  return {
    "kind": kind,
    "steps": before + found.step,
    "held_out": held_out,
    "distinct": distinct,
    "oracle_nll": scores,
    "impossible": impossible,
  }


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
