"""Vectors of words trained here and by gensim: the same words, width, window, negatives and epochs.

Both are scored by Spearman's correlation with judged pairs of words; words/s are words read a second while
training. Their rates are not one number: gensim's SGD moves after every pair (--peer_rate), Adam here after
thousands (--set optim.peak_lr). gensim has a Python of its own: `python -m venv g && g/bin/pip install
gensim`; WordSim-353 comes with it as gensim/test/test_data/wordsim353.tsv.

examples:
  python benchmarks/word_vectors.py --text "books/*.gz" --pairs wordsim353.tsv --peer_python g/bin/python
  python benchmarks/word_vectors.py --text a.txt --pairs wordsim353.tsv --architecture cbow --epochs 2
"""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import bench

SENTENCE = 10_000  # words that gensim reads at a time, at most


def main() -> None:
  parser = bench.make_parser(__doc__)
  parser.add_argument("--text", help="files, as text:GLOB reads them")
  parser.add_argument("--pairs", help="word <tab> word <tab> likeness, a pair a line")
  parser.add_argument("--architecture", default="skipgram", choices=("skipgram", "cbow"))
  parser.add_argument("--epochs", type=int, default=5)
  parser.add_argument("--peer_python", help="a Python that has gensim")
  parser.add_argument("--peer_rate", type=float, default=0.025, help="gensim's first rate, a pair")
  parser.add_argument("--sentences", help="words that gensim trains on; written by the first row")
  options = parser.parse_args()
  if options.worker:
    print(json.dumps({"isoflop": time_ours, "gensim": time_gensim}[options.worker](options)))
    return
  with tempfile.TemporaryDirectory() as folder:
    options.sentences = str(pathlib.Path(folder) / "sentences.txt")
    for who, python in (("isoflop", None), ("gensim", options.peer_python)):
      if who == "gensim" and python is None:
        continue
      row = {"who": who, **bench.run_worker(who, options, python=python)}
      bench.append(options.out, "word_vectors", row)
      print(json.dumps(row), flush=True)


def time_ours(options) -> dict:
  """Trains through train.py, and writes the words it trained on where gensim finds them."""
  import dataclasses

  import train
  from lm.data.contexts import not_words
  from lm.runs import rundir
  from lm.setup.load import load_config
  from lm.setup.resolve import kind_of
  from lm.tasks import similarity

  changes = {"data.sources": f"text:{options.text}", "log.wandb": "disabled", "sample.tokens": "0"}
  changes |= {"data.val_split": "tail", "data.val_fraction": "0.01"}
  changes |= dict(setting.split("=", 1) for setting in options.set)
  spec = str(bench.ROOT / f"configs/word2vec.py:{options.architecture}")
  cfg = load_config(spec, changes)
  data = kind_of(cfg).open(cfg)
  write_sentences(data, set(not_words(data.tokenizer)), options.sentences)
  changes["train.tokens"] = str(options.epochs * data.n_units)
  flags = [f"--config.{key}={value}" for key, value in changes.items()]
  with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    start = time.perf_counter()
    assert train.main(["--config", spec, "--workdir", folder, *flags]) == 0
    seconds = time.perf_counter() - start
    workdir = pathlib.Path(folder)
    scores = similarity.evaluate(workdir, options.pairs, "latest")
    speed = rundir.read_run(workdir)["tokens_per_sec"]
  row = {"words": data.n_units, "vocabulary": data.vocab_size, "epochs": options.epochs}
  row |= {"words_per_sec": speed, "seconds": seconds, **scores}
  return row | {"objective": dataclasses.asdict(cfg.objective)} | bench.about()


def write_sentences(words, left_out: set[int], path: str) -> None:
  """The training words, a piece of a document a line."""
  with open(path, "w", encoding="utf-8") as file:
    for store in words.corpus.train:
      for start, stop in zip(store.offsets, store.offsets[1:], strict=False):
        ids = [int(i) for i in store.tokens[start:stop] if int(i) not in left_out]
        for first in range(0, len(ids), SENTENCE):
          file.write(" ".join(map(words.tokenizer.token, ids[first : first + SENTENCE])) + "\n")


def time_gensim(options) -> dict:
  """gensim's Word2Vec with the settings of configs/word2vec.py, on as many threads as there are cores."""
  import os
  from importlib import metadata

  from gensim.models.word2vec import LineSentence, Word2Vec

  model = Word2Vec(
    vector_size=100, window=5, negative=5, sample=1e-3, min_count=1, epochs=options.epochs,
    sg=int(options.architecture == "skipgram"), workers=os.cpu_count() or 1, seed=1,
    alpha=options.peer_rate,
  )  # fmt: skip
  sentences = LineSentence(options.sentences, max_sentence_length=SENTENCE)
  model.build_vocab(sentences)
  start = time.perf_counter()
  model.train(sentences, total_examples=model.corpus_count, epochs=options.epochs)
  seconds = time.perf_counter() - start
  found = model.wv.evaluate_word_pairs(options.pairs, case_insensitive=True)
  words = model.corpus_total_words
  return {
    "words": words, "vocabulary": len(model.wv), "epochs": options.epochs, "seconds": seconds,
    "rate": options.peer_rate,
    "words_per_sec": words * options.epochs / seconds, "spearman": float(found[1].statistic),
    "unknown_share": found[2] / 100, "versions": {"gensim": metadata.version("gensim")},
  }  # fmt: skip


if __name__ == "__main__":
  main()
