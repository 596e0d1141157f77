"""Scores a run on any data by its objective: for a language model loss, perplexity, bits per byte.

examples:
  python -m lm.evaluate --workdir runs/default
  python -m lm.evaluate --workdir runs/default --data "text:books/*.txt" --stride 128 --json
  python -m lm.evaluate --workdir runs/imported --data text:test.tsv --text_field 0 --label_field 1
  python -m lm.evaluate --workdir runs/default --task samples:prompts.txt
  python -m lm.evaluate --workdir runs/multi30k --task translation:test.en,test.de --beams 5
  python -m lm.evaluate --workdir runs/smollm2 --task summary:test.jsonl --cue " TL;DR:" --stop "." --limit 64
  python -m lm.evaluate --workdir runs/squad --task squad:dev-v1.1.json --answers answers.jsonl
"""

from lm.config import interrupts

if __name__ == "__main__":
  interrupts.listen()

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from lm.config.command_line import Parser, reject_unknown, run_main, utf8
from lm.config.errors import ConfigError, number_of
from lm.config.hparams import Hparams
from lm.config.schema import Config, MeshConfig
from lm.data.tokenizers import load_tokenizer
from lm.devices import host, sharding
from lm.files import write_text
from lm.objectives.objective import Metric, Objective
from lm.objectives.registry import objective_of
from lm.runs import bucket, rundir
from lm.runs.checkpoint import load_state, usable_params
from lm.runs.progress import counted
from lm.setup.hparams import make_hparams
from lm.setup.resolve import kind_of
from lm.tasks.registry import READ, evaluate_task
from lm.tasks.texts import Writing
from lm.training.compile_cache import keep_compiled
from lm.training.programs import Programs, extra_of, make_programs

FIELDS = ("text_field", "pair_field", "label_field")  # of records with labels
ONE_DEVICE = MeshConfig(replica=1, fsdp=1, expert=1, sequence=1, tensor=1)


def evaluate_sets(
  programs: Programs,
  objective: Objective,
  params: Any,
  extra: Any,
  hparams: Hparams,
  sets: Mapping[str, Any],
  n_runs: int = 1,
  label: str | None = None,
) -> list[dict[str, float]]:
  """eval/<set>/<score> of each stacked run, over whole sets: the objective's scores of the set's sums.

  Sums are added in float64 on the host.

  Args:
    params, extra: of a State (lm.training.step).
    sets: batches of evaluation sets (lm.data.kinds.Kind.evaluate) by name.
    label: of a bar on stderr, where that is a terminal; None = no bar.
  """
  results = [{} for _ in range(n_runs)]
  for name, batches in sets.items():
    parts, carried = [], programs.begin_eval(params, extra)
    for number in counted(range(len(batches)), label):
      read = functools.partial(batches.at, number)
      batch = sharding.put_rows(read, batches.batch_size, programs.eval_sharding)
      sums, carried = programs.evaluate(params, carried, batch, hparams)
      parts.append(sums)
    fetched = jax.device_get(parts)
    for r, result in enumerate(results):
      of_run = lambda x, r=r: np.asarray(x[r] if n_runs > 1 else x, np.float64)
      join = lambda key: np.concatenate if key in objective.kept else sum
      total = {key: join(key)([of_run(part[key]) for part in fetched]) for key in fetched[0]}
      scores = objective.eval_scores(total, batches.facts)
      result |= {f"eval/{name}/{score}": float(value) for score, value in scores.items()}
  return results


def eval_sets(data: Any, cfg: Config) -> dict[str, Any]:
  """The evaluation batches of a resolved config: the held-out set and those of eval.sets."""
  kind = kind_of(cfg)
  sets = kind.sets(data, cfg)
  return {name: kind.evaluate(each, cfg, cfg.eval.tokens, None) for name, each in sets.items()}


def evaluate_run(
  workdir: pathlib.Path,
  data: str | None = None,
  checkpoint: str = "best",
  stride: int | None = None,
  max_tokens: int | None = None,
  fields: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, object]:
  """Scores a trained run.

  Args:
    workdir: run directory.
    data: a source such as "text:GLOB"; the run's held-out set if None.
    checkpoint: "best", "latest" or a step.
    stride: predicted tokens a window; the rest of the window is context. None = whole windows.
    max_tokens: whole documents up to so many tokens; None = all.
    fields: {"text_field" | "pair_field" | "label_field": how the records of `data` call it; "truncate":
      whether texts longer than the model are cut}; the run's own if absent.

  Returns:
    {"workdir", "step", "data", "fingerprint", the objective's scores, the set's facts such as "tokens" and
    "bytes", "seconds" in all, "tokens_per_sec" (of other units words_... or pairs_...) of the pass over the
    set, compilation included, and "peak_bytes" of the process}; "perplexity" = exp(loss) where there is a
    loss in nats per token.

  Raises:
    ConfigError: no such run, checkpoint or data; a stride outside [1, seq_len].
  """
  begun = time.perf_counter()
  cfg = rundir.read_config(workdir)
  if max_tokens is not None and max_tokens < 1:
    raise ConfigError(f"max_tokens={max_tokens}: must be at least 1; leave it out for all")
  if stride is not None and not 1 <= stride <= cfg.model.seq_len:
    raise ConfigError(f"stride={stride}: must be in [1, {cfg.model.seq_len}]; use the model's half")
  keep_compiled(cfg.data.cache_dir)
  cfg = dataclasses.replace(cfg, mesh=ONE_DEVICE)
  kind, objective = kind_of(cfg), objective_of(cfg.objective)
  state, step = load_state(workdir, checkpoint)
  programs = make_programs(cfg, sharding.make_mesh(ONE_DEVICE, devices=jax.devices()[:1]))
  missing = sorted(set(programs.run_shape.params) - set(usable_params(state)))
  if missing:
    raise ConfigError(
      f"workdir={workdir}: has no {missing[0]}, as it was imported without; train one with train.init_from"
    )
  renamed = _renamed(cfg, data, fields)
  opened = _open(workdir, cfg, renamed, data)
  chosen = kind.held_out(opened) if data is None else kind.extra_set(opened, data)
  batches = kind.evaluate(chosen, renamed, max_tokens, stride)
  put = lambda tree, layout: jax.device_put(tree, layout)
  params = put(usable_params(state), programs.state_sharding.params)
  extra = extra_of(programs, state)
  hparams = put(make_hparams(cfg), programs.scalar_sharding)
  label, scoring = f"scoring {data or 'val'}", time.perf_counter()
  found = evaluate_sets(
    programs, objective, params, extra, hparams, {"data": batches}, label=label
  )[0]
  ended = time.perf_counter()
  scores = {key.removeprefix("eval/data/"): value for key, value in found.items()}
  if objective.eval_metrics.get("loss", Metric("")).unit.startswith("nats/token"):
    scores = {"loss": scores["loss"], "perplexity": math.exp(min(scores["loss"], 700.0)), **scores}
  return {
    "workdir": bucket.name_of(workdir),
    "step": step,
    "data": data or "val",
    "fingerprint": chosen.fingerprint,
    **scores,
    **batches.facts,
    "seconds": ended - begun,
    f"{kind.unit}_per_sec": batches.facts[kind.unit] / (ended - scoring),
    "peak_bytes": float(host.peak_bytes()),
  }


def _renamed(cfg: Config, data: str | None, fields: Mapping[str, object]) -> Config:
  """The run's config with how the records of `data` are read; ConfigError where these have no labels."""
  kind = kind_of(cfg)
  if not fields:
    return cfg
  if data is None or not kind.labelled:
    key, value = next(iter(fields.items()))
    raise ConfigError(f"{key}={value}: is of records with labels that --data names; leave it out")
  found = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, **fields))
  kind.check(found)
  return found


def _open(workdir: pathlib.Path, cfg: Config, renamed: Config, data: str | None) -> Any:
  """What the run was trained on, or, of an imported one with labels, what reads `data` by its labels.

  Args:
    renamed: the run's config with what `data` calls its fields.
  """
  kind = kind_of(cfg)
  run = rundir.read_run(workdir)
  if kind.untrained is None or "labels" not in run or run.get("data"):
    opened = kind.open(cfg)
    own = renamed if isinstance(getattr(opened, "cfg", None), Config) else renamed.data
    return opened if renamed == cfg else dataclasses.replace(opened, cfg=own)
  if data is None:
    raise ConfigError(
      f"workdir={workdir}: was imported and has no held-out set; name one with --data text:FILE"
    )
  labels, classes = tuple(run["labels"]), getattr(cfg.objective, "classes", None)
  if classes is not None and classes != len(labels):
    raise ConfigError(
      f"workdir={workdir}: its {number_of(classes, 'class')} came without names (id2label in "
      "config.json), so no label can be told; add them and import it again"
    )
  return kind.untrained(renamed, load_tokenizer(workdir / "tokenizer"), labels)


def _score(options) -> dict[str, object]:
  """What the parsed options ask for: a task, or the objective's scores."""
  workdir = bucket.local(options.workdir)
  if options.task is None:
    for name, off in {**Writing()._asdict(), "limit": None, "answers": None}.items():
      if name != "truncate" and getattr(options, name) != off:
        raise ConfigError(f"{name}={getattr(options, name)}: is of a task; add --task")
    asked = (*FIELDS, "truncate")
    fields = {key: getattr(options, key) for key in asked if getattr(options, key) is not None}
    return evaluate_run(
      workdir, options.data, options.checkpoint, options.stride, options.max_tokens, fields
    )
  for name in ("data", "stride", "max_tokens", *FIELDS):
    if getattr(options, name) is not None:
      raise ConfigError(f"{name}={getattr(options, name)}: is not of a task; leave it out")
  task = options.task
  if options.length_penalty != 1.0 and options.beams == 1:
    raise ConfigError(
      f"length_penalty={options.length_penalty}: is of beams; add --beams 5 or leave it out"
    )
  if options.answers and task.partition(":")[0] in READ:
    raise ConfigError(
      f"answers={options.answers}: is of tasks that write, such as translation; leave it out"
    )
  if options.answers and not pathlib.Path(options.answers).parent.is_dir():
    raise ConfigError(f"answers={options.answers}: must be in a folder that exists; make it")
  keep_compiled(rundir.read_config(workdir).data.cache_dir)
  if options.system is not None and not options.chat:
    raise ConfigError(f"system={options.system}: is of a conversation; add --chat")
  writing = Writing(*(getattr(options, name) for name in Writing._fields))
  writing = writing._replace(truncate=bool(options.truncate))
  scores, answers = evaluate_task(workdir, task, options.checkpoint, writing, options.limit)
  if options.answers:
    lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
    write_text(pathlib.Path(options.answers), "".join(lines))
  return {"task": task, **scores}


def main(argv: list[str]) -> int:
  parser = Parser(prog="python -m lm.evaluate", description=__doc__)
  parser.add_argument("--workdir", required=True, help="run directory")
  parser.add_argument("--data", help="kind:argument as in data.sources; the held-out set if absent")
  parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
  parser.add_argument("--stride", type=int, help="predicted tokens a window, the rest is context")
  parser.add_argument("--max_tokens", type=int, help="whole documents up to so many tokens")
  parser.add_argument(
    "--truncate", action="store_true", default=None,
    help="cut what is longer than the model: of --data with labels, of tasks that write, and of squad",
  )  # fmt: skip
  for key in FIELDS:
    parser.add_argument(f"--{key}", help=f"of --data with labels, instead of the run's data.{key}")
  parser.add_argument("--task", help="NAME:FILE instead of the loss, such as summary:test.jsonl")
  parser.add_argument(
    "--beams", type=int, default=1, help="of texts that a task asks for; 1 = greedy"
  )
  parser.add_argument("--length_penalty", type=float, default=1.0, help="of the beams' scores")
  parser.add_argument(
    "--cue", type=utf8, default="", help="stands after every source, such as ' TL;DR:'"
  )
  parser.add_argument("--stop", type=utf8, help="texts that a task asks for end before this string")
  parser.add_argument(
    "--chat",
    action="store_true",
    help="a source and its cue are a user's message, by the chat template",
  )
  parser.add_argument("--system", type=utf8, help="what the system says before such a conversation")
  parser.add_argument("--limit", type=int, help="the first examples of a task alone")
  parser.add_argument("--answers", help="file to write a task's texts to, a JSON object each")
  parser.add_argument("--json", action="store_true", help="print the scores as JSON")
  options, unknown = parser.parse_known_args(argv)
  reject_unknown(parser, unknown)
  scores = _score(options)
  if options.json:
    print(json.dumps(scores))
  else:
    print(
      "\n".join(f"{k:<11} {f'{v:,.4f}' if isinstance(v, float) else v}" for k, v in scores.items())
    )
  return 0


if __name__ == "__main__":
  run_main(main)
