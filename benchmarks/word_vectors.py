"""Vectors of words trained here and by gensim: the same words, width, window, negatives and epochs.

Both are scored by Spearman's correlation with judged pairs of words; words/s are words read a second while
training. gensim's SGD moves by its rate after every pair. `--rates` gives both the same rates of a pair:
here a step is plain SGD on the mean over its P neighbours (CBOW: words) at P times that rate, which falls
to the same last rate, so that a step moves as far as gensim's P moves would if none saw the others. Rows of
few words make small steps (`--set train.batch_size=4`). gensim reads rows of as many words as ours,
shuffled once, as ours are in each epoch: SGD that meets one book after another ends at 0.33 instead of
0.40. Without `--rates` ours is what configs/word2vec.py says, Adam, whose rate is another thing, and
gensim's is its default. gensim has a Python of its own: `python -m venv g && g/bin/pip install gensim`;
WordSim-353 comes with it as gensim/test/test_data/wordsim353.tsv.

examples:
  python benchmarks/word_vectors.py --text "books/*.gz" --pairs wordsim353.tsv --peer_python g/bin/python
  python benchmarks/word_vectors.py --text a.txt --pairs wordsim353.tsv --peer_python g/bin/python \
    --rates 0.025,0.05,0.1 --set train.batch_size=4 --set objective.drawn=256
  python benchmarks/word_vectors.py --text a.txt --pairs wordsim353.tsv --architecture cbow --epochs 2
"""

import argparse
import contextlib
import io
import json
import pathlib
import random
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import bench
from lm.devices import host

RATE, LAST_RATE = 0.025, 1e-4  # gensim's defaults, a pair; the rate falls from one to the other


def main() -> None:
  parser = bench.make_parser(__doc__)
  parser.add_argument("--text", help="files, as text:GLOB reads them")
  parser.add_argument("--pairs", help="word <tab> word <tab> likeness, a pair a line")
  parser.add_argument("--architecture", default="skipgram", choices=("skipgram", "cbow"))
  parser.add_argument("--epochs", type=int, default=5)
  parser.add_argument("--peer_python", help="a Python that has gensim")
  parser.add_argument(
    "--rates", help="first rates of a pair, with commas, here by SGD and in gensim"
  )
  parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)  # of one row
  parser.add_argument("--sentences", help="words that gensim trains on; written by the first row")
  options = parser.parse_args()
  if options.worker:
    print(json.dumps({"isoflop": time_ours, "gensim": time_gensim}[options.worker](options)))
    return
  with tempfile.TemporaryDirectory() as folder:
    options.sentences = str(pathlib.Path(folder) / "sentences.txt")
    rates = [float(text) for text in options.rates.split(",")] if options.rates else [None]
    for rate in rates:
      for who, python in (("isoflop", None), ("gensim", options.peer_python)):
        if who == "gensim" and python is None:
          continue
        row = {"who": who, **bench.run_worker(who, options, python=python, rate=rate)}
        bench.append(options.out, "word_vectors", row)
        print(json.dumps(row), flush=True)


def time_ours(options) -> dict:
  """Trains through train.py, and writes the words it trained on where gensim finds them."""
  import dataclasses

  import train
  from lm.data.contexts import not_words
  from lm.runs import rundir
  from lm.setup.load import load_config
  from lm.setup.resolve import kind_of, resolve
  from lm.tasks import similarity

  changes = {"data.sources": f"text:{options.text}", "log.wandb": "disabled", "sample.tokens": "0"}
  changes |= {"data.val_split": "tail", "data.val_fraction": "0.01"}
  changes |= dict(setting.split("=", 1) for setting in options.set)
  spec = str(bench.ROOT / f"configs/word2vec.py:{options.architecture}")
  cfg = load_config(spec, changes)
  data = kind_of(cfg).open(cfg)
  write_sentences(data, set(not_words(data.tokenizer)), cfg.model.seq_len, options.sentences)
  changes["train.tokens"] = str(options.epochs * data.n_units)
  if options.rate is not None:
    pairs = mean_pairs(data, resolve(cfg, data.vocab_size, 1))
    changes |= rate_of_pairs(options.rate, pairs)
  flags = [f"--config.{key}={value}" for key, value in changes.items()]
  with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    start = time.perf_counter()
    assert train.main(["--config", spec, "--workdir", folder, *flags]) == 0
    seconds = time.perf_counter() - start
    workdir = pathlib.Path(folder)
    scores = similarity.evaluate(workdir, options.pairs, "latest")
    speed = rundir.read_run(workdir)["tokens_per_sec"]
  row = {"words": data.n_units, "vocabulary": data.vocab_size, "epochs": options.epochs}
  row |= {"words_per_sec": speed, "seconds": seconds, "rate": options.rate, **scores}
  return row | {"objective": dataclasses.asdict(cfg.objective)} | bench.about()


def mean_pairs(data, cfg, batches: int = 16) -> float:
  """P, what a batch's loss is divided by, on average: neighbours (skip-gram), words that have any (CBOW)."""
  from lm.objectives.negative_sampling import neighbours
  from lm.setup.resolve import kind_of

  made = kind_of(cfg).train(data, cfg)
  counts = [
    neighbours(b["segments"], b["windows"]).sum(axis=2) for b in map(made.at, range(batches))
  ]
  if cfg.objective.architecture == "cbow":
    counts = [count.clip(0, 1) for count in counts]
  return float(sum(count.sum() for count in counts)) / batches


def rate_of_pairs(rate: float, pairs: float) -> dict[str, str]:
  """SGD on a mean over `pairs` that moves by `rate` for each, falling to gensim's last rate."""
  return {
    "optim.name": "sgd", "optim.b1": "0.0", "optim.peak_lr": str(rate * pairs),
    "optim.final_lr_frac": str(LAST_RATE / rate),
  }  # fmt: skip


def write_sentences(words, left_out: set[int], length: int, path: str) -> None:
  """The training words, `length` of a document a line, the lines shuffled."""
  lines = []
  for store in words.corpus.train:
    for start, stop in zip(store.offsets, store.offsets[1:], strict=False):
      ids = [int(i) for i in store.tokens[start:stop] if int(i) not in left_out]
      for first in range(0, len(ids), length):
        lines.append(" ".join(map(words.tokenizer.token, ids[first : first + length])) + "\n")
  random.Random(0).shuffle(lines)
  pathlib.Path(path).write_text("".join(lines), encoding="utf-8")


def time_gensim(options) -> dict:
  """gensim's Word2Vec with the settings of configs/word2vec.py, on as many threads as it may use cores."""
  from importlib import metadata

  from gensim.models.word2vec import LineSentence, Word2Vec

  model = Word2Vec(
    vector_size=100, window=5, negative=5, sample=1e-3, min_count=1, epochs=options.epochs,
    sg=int(options.architecture == "skipgram"), workers=host.cores(), seed=1,
    alpha=options.rate or RATE, min_alpha=LAST_RATE,
  )  # fmt: skip
  sentences = LineSentence(options.sentences)
  model.build_vocab(sentences)
  start = time.perf_counter()
  model.train(sentences, total_examples=model.corpus_count, epochs=options.epochs)
  seconds = time.perf_counter() - start
  found = model.wv.evaluate_word_pairs(options.pairs, case_insensitive=True)
  words = model.corpus_total_words
  return {
    "words": words, "vocabulary": len(model.wv), "epochs": options.epochs, "seconds": seconds,
    "rate": options.rate or RATE,
    "words_per_sec": words * options.epochs / seconds, "spearman": float(found[1].statistic),
    "unknown_share": found[2] / 100, "versions": {"gensim": metadata.version("gensim")},
  }  # fmt: skip


if __name__ == "__main__":
  main()
