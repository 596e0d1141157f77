"""Run directories as train.py leaves them, made without training, for tests of what reads them."""

import pathlib

from lm.plan import run_plan as plan
from lm.runs import rundir
from lm.runs.record import Recorder
from lm.setup.load import load_config
from lm.setup.resolve import resolve

SMOKE = "configs/smoke.py"
VOCAB = 257


def fake_run(
  workdir: pathlib.Path, overrides=None, status="done", loss=3.0, reason=None, **facts
) -> dict:
  """A run of configs/smoke.py whose validation loss falls from loss + 1 to loss; returns run.json.

  Args:
    facts: what run.json should say instead, for example data={...}.
  """
  cfg = resolve(load_config(SMOKE, overrides or {}), VOCAB, 1)
  about = plan.make_plan(cfg, None)
  store = {"tokens": 1000, "bytes": 1000, "documents": 10, "fingerprint": "val0"}
  data = {
    "fingerprint": "data0",
    "tokenizer": {"name": "byte", "vocab_size": VOCAB, "fingerprint": "tok0"},
    "stores": {"val": store},
  }
  run = rundir.open_run(
    workdir, cfg, {**about.to_dict(), "corpus_tokens": 10_000, "data": data, **facts}
  )
  recorder = Recorder(workdir, 0)
  steps, per_step = cfg.train.steps, cfg.train.batch_size * cfg.model.seq_len
  for step in range(10, steps + 1, 10):
    left = 1 - step / steps
    metrics = {"train/loss": loss + left, "perf/seconds": 0.1 * step}
    if step % cfg.eval.every_steps == 0:
      metrics |= {"eval/val/loss": loss + left, "eval/val/bpb": (loss + left) / 0.7}
    tokens = step * per_step
    per_token = about.flops_per_token[cfg.train.flops_convention]
    recorder.metrics(step, {"tokens": tokens, "flops": tokens * per_token}, metrics)
  recorder.close()
  if status != "running":
    rundir.close_run(workdir, run, status, reason=reason, tokens_per_sec=1000.0)
  return run
