"""Whether a VAE of sentences uses its latent vector: with and without what Bowman et al. 2016 do for it.

plain: the KL weighs 1 from the start, the decoder reads every word. annealed: its weight rises along a
logistic curve. kept: annealed, and words are left out. free: the KL of each dimension is free up to 0.1 nats.
Each is a run of configs/vae.py:sentences on the same sentences; the table shows the held-out ELBO, its KL,
the importance-weighted bound and the active dimensions.

examples:
  python benchmarks/vae.py --text sentences.txt
  python benchmarks/vae.py --text sentences.txt --steps 4000 --settings plain,kept --set model.width=128
"""

import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import bench

SETTINGS = {
  "plain": {"objective.anneal": "none", "objective.word_dropout": 0.0},
  "annealed": {"objective.anneal": "sigmoid", "objective.word_dropout": 0.0},
  "kept": {"objective.anneal": "sigmoid", "objective.word_dropout": 0.75},
  "free": {"objective.anneal": "none", "objective.word_dropout": 0.0, "objective.free_bits": 0.1},
}
SHOWN = ("neg_elbo", "kl", "bound", "active")


def main() -> None:
  parser = bench.make_parser(__doc__)
  parser.add_argument("--text", required=True, help="a sentence a line")
  parser.add_argument("--steps", type=int, default=2000, help="of each run, 64 sentences each")
  parser.add_argument("--settings", default="plain,kept", help=f"of {', '.join(SETTINGS)}")
  options = parser.parse_args()
  if options.worker:
    print(json.dumps(train_one(options)))
    return
  print(f"{'setting':<10}" + "".join(f"{name:>12}" for name in SHOWN))
  for setting in options.settings.split(","):
    row = {"setting": setting, **bench.run_worker(setting, options)}
    bench.append(options.out, "vae", row)
    shown = "".join(f"{row[name]:12.3f}" for name in SHOWN) if "error" not in row else row["error"]
    print(f"{setting:<10}" + shown, flush=True)


def train_one(options) -> dict:
  """The last evaluation of a run, and what it draws at its end."""
  import contextlib
  import io

  import train
  from lm.files import read_jsonl
  from lm.runs import rundir

  changes = {
    "data.sources": f"text:{options.text}", "train.steps": options.steps, "log.wandb": "disabled",
    "objective.anneal_steps": options.steps // 2, **SETTINGS[options.worker],
  }  # fmt: skip
  changes |= dict(setting.split("=", 1) for setting in options.set)
  flags = [f"--config.{key}={value}" for key, value in changes.items()]
  spec = str(bench.ROOT / "configs/vae.py:sentences")
  with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    assert train.main(["--config", spec, "--workdir", folder, *flags]) == 0
    final = rundir.read_run(pathlib.Path(folder))["final"]
    drawn = read_jsonl(pathlib.Path(folder) / "samples.jsonl")[-1]
  scores = {key.removeprefix("eval/val/"): value for key, value in final.items()}
  return {**scores, "steps": options.steps, "sample": drawn.get("text"), **bench.about()}


if __name__ == "__main__":
  main()
