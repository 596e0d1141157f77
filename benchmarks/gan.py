"""Does adversarial training write better sentences than maximum likelihood? The language's oracle judges.

Three runs of configs/gan.py on one oracle: maximum likelihood for as long as the GAN's first phase (before),
the GAN, and maximum likelihood for as long as all of the GAN. Of each, `--samples` sentences are drawn at
several temperatures, as a model can trade quality for variety by its temperature alone (Caccia et al. 2020,
arXiv:1811.02549): quality is the oracle's NLL of them (nats a character; that of real sentences stands
below the table), variety the NLL of held-out real sentences under the model, and how many of all pairs of
neighbouring characters are different ones (distinct-2).

examples:
  python benchmarks/gan.py --size gumbel
  python benchmarks/gan.py --size seqgan --set optim.peak_lr=1e-3
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
from lm.runs.load import load
from lm.setup.load import load_config

TEMPERATURES = (0.8, 0.9, 1.0, 1.1)


def main(argv: list[str]) -> int:
  parser = make_parser(__doc__)
  parser.add_argument("--size", default="gumbel", help="of configs/gan.py")
  parser.add_argument("--samples", type=int, default=2000, help="sentences drawn of each model")
  parser.add_argument("--root", default="runs/gan", help="where the runs are kept")
  options = parser.parse_args(argv)
  spec = f"configs/gan.py:{options.size}"
  cfg = load_config(str(ROOT / "configs" / "gan.py") + f":{options.size}", {})
  first, whole = cfg.objective.likelihood_steps, cfg.train.steps
  settings = {
    "before": {"train.steps": first, "objective.likelihood_steps": first},
    "gan": {},
    "likelihood": {"objective.likelihood_steps": whole},
  }
  rows, name = [], cfg.data.sources[0].partition(":")[2]
  for kind, changes in settings.items():
    workdir = pathlib.Path(options.root) / f"{options.size}-{kind}"
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    flags += [f"--config.{text}" for text in options.set]
    code = train.main(["--config", spec, "--workdir", str(workdir), *flags])
    if code:
      return code
    rows.append(row(kind, workdir, name, options.samples))
  real = oracle.nll(name, list(oracle.read(f"{name}-n{options.samples}", spec))).mean()
  print(f"\n{'':12} {'steps':>6} {'held-out':>9} {'distinct-2':>10}  oracle's NLL at temperature")
  print(" " * 42 + "".join(f"{t:8}" for t in TEMPERATURES))
  for each in rows:
    scores = "".join(f"{score:8.3f}" for score in each["oracle_nll"])
    print(
      f"{each['kind']:12} {each['steps']:6} {each['held_out']:9.4f} {each['distinct']:10.3f}  {scores}"
    )
  print(f"real sentences {real:.3f} nats a character")
  with pathlib.Path(options.out).open("a", encoding="utf-8") as file:
    for each in rows:
      file.write(
        json.dumps({"benchmark": "gan", "size": options.size, "real": real, **each}) + "\n"
      )
  return 0


def row(kind: str, workdir: pathlib.Path, name: str, samples: int) -> dict:
  """Scores of a finished run."""
  found = load(workdir, "latest")
  length = oracle.parse(name, name).length
  scores, distinct = [], 0.0
  for temperature in TEMPERATURES:
    texts = found.generate([""] * samples, length, temperature)
    nll = oracle.nll(name, texts)
    scores.append(float(nll[np.isfinite(nll)].mean()))
    if temperature == 1.0:
      pairs = [text[i : i + 2] for text in texts for i in range(len(text) - 1)]
      distinct = len(set(pairs)) / len(pairs)
  last = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  held_out = [record["eval/val/loss"] for record in last if "eval/val/loss" in record][-1]
  steps = found.step
  return {
    "kind": kind,
    "steps": steps,
    "held_out": held_out,
    "distinct": distinct,
    "oracle_nll": scores,
  }


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
