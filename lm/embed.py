"""Sentence vectors of an encoder, pooled over a text's tokens and of length 1, and how alike texts are.

Reimers & Gurevych 2019, arXiv:1908.10084. A run of someone else's encoder is made by python -m lm.hf import.

examples:
  python -m lm.embed --workdir runs/minilm --text "A sentence" --text "Another one"
  python -m lm.embed --workdir runs/minilm --file sentences.txt --json
"""

from lm.config import interrupts

if __name__ == "__main__":
  interrupts.listen()

import functools
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm.config.command_line import Parser, read_text, reject_unknown, run_main, utf8
from lm.config.errors import ConfigError, number_of
from lm.objectives.pooled import pool, read_rows
from lm.runs import bucket
from lm.runs.load import load

ROWS = 32  # texts at a time
STEP = 16  # rows are padded to multiples of it, so that few programs are compiled
POOLINGS = ("mean", "first", "last")


def sentence_vectors(
  texts: Sequence[str], workdir: pathlib.Path, checkpoint: str = "best", pooling: str = "mean"
) -> np.ndarray:
  """float32 [n, D] of length 1: [CLS] text [SEP] each, pooled over all of these tokens.

  Raises:
    ConfigError: a model that reads in one direction, an empty text or one longer than the model.
  """
  run = load(workdir, checkpoint)
  model = run.model
  if not hasattr(model, "bidirectional"):
    raise ConfigError(
      f"workdir={workdir}: model.family={run.cfg.model.family} is no encoder; import or train one"
    )
  ids = [[run.tokenizer.start_id, *run.tokenizer.encode(t), run.tokenizer.eot_id] for t in texts]
  for text, row in zip(texts, ids, strict=True):
    if len(row) == 2:
      raise ConfigError(f"text={text!r}: has no token; write one")
    if len(row) > run.cfg.model.seq_len:
      raise ConfigError(
        f"text={text[:40]!r}...: has {number_of(len(row), 'token')}, more than "
        f"model.seq_len={run.cfg.model.seq_len}; "
        "shorten it"
      )
  encode = jax.jit(functools.partial(_encode, model, pooling))
  found = []
  for start in range(0, len(ids), ROWS):
    rows = ids[start : start + ROWS]
    length = min(-(-max(map(len, rows)) // STEP) * STEP, run.cfg.model.seq_len)
    tokens_BL, real_BL = (np.zeros((len(rows), length), np.int32) for _ in range(2))
    for b, row in enumerate(rows):
      tokens_BL[b, : len(row)], real_BL[b, : len(row)] = row, 1
    found.append(np.asarray(encode(run.params, tokens_BL, real_BL)))
  return np.concatenate(found)


def _encode(model, pooling, params, tokens_BL, real_BL):
  x_BLD = read_rows(model, params, {"tokens": tokens_BL, "segments": real_BL}, None)
  x_BD = pool(x_BLD, real_BL, pooling)
  return x_BD / jnp.linalg.norm(x_BD, axis=1, keepdims=True)


def main(argv: Sequence[str]) -> int:
  parser = Parser(prog="python -m lm.embed", description=__doc__)
  parser.add_argument("--workdir", required=True, help="run directory of an encoder")
  parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--text", type=utf8, action="append", help="a text; give it again for more")
  what.add_argument("--file", help="file with a text a line")
  parser.add_argument("--pooling", default="mean", choices=POOLINGS, help="what speaks for a text")
  parser.add_argument("--json", action="store_true", help="print vectors and cosines as JSON")
  options, unknown = parser.parse_known_args(argv)
  reject_unknown(parser, unknown)
  texts = options.text or read_text("file", options.file).splitlines()
  if not texts:
    raise ConfigError(f"file={options.file}: must hold a text; add a line")
  vectors = sentence_vectors(
    texts, bucket.local(options.workdir), options.checkpoint, options.pooling
  )
  cosines = vectors @ vectors.T
  if options.json:
    print(json.dumps({"vectors": vectors.tolist(), "cosines": cosines.tolist()}))
    return 0
  print("cosines")
  for row, text in zip(cosines, texts, strict=True):
    print("  ".join(f"{value:7.4f}" for value in row), f"  {text}")
  return 0


if __name__ == "__main__":
  run_main(main)
