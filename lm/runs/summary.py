"""What a run prints when it ends: how good, how fast, a sample, where, and what to try next."""

import pathlib
import shlex
from collections.abc import Sequence

from lm.data.templates import answers_chats
from lm.files import read_jsonl
from lm.models.registry import family_of
from lm.objectives.registry import objective_of
from lm.runs import bucket
from lm.runs.metrics import START
from lm.runs.rundir import read_config, read_run
from lm.setup.resolve import kind_of, schedule_steps
from lm.training import noise_scale


def show(workdirs: Sequence[pathlib.Path]) -> str:
  """The closing text of one run, or a line for each of several."""
  return bucket.with_names(_show(workdirs))


def _show(workdirs: Sequence[pathlib.Path]) -> str:
  if len(workdirs) > 1:
    return "\n".join(f"{workdir}  {_state(workdir)}" for workdir in workdirs)
  workdir, run = workdirs[0], _read(workdirs[0])
  lines = ["", f"{run['status']}: {workdir}"]
  if run["reason"]:
    lines.append(f"  {run['reason']}")
  lines += [f"  {name:<5} {scores}" for name, scores in _scores(workdir, run["final"]).items()]
  lines += [f"  {line}" for line in _no_better_than_chance(workdir, run["final"])]
  if isinstance(run.get("tokens_per_sec"), int | float):
    lines.append(f"  speed {run['tokens_per_sec']:,.0f} {run['unit']}/s")
  lines += [f"  start {start}" for start in _start(workdir)]
  watched = read_config(workdir).train.noise_scale
  scale = noise_scale.noise_scale(read_jsonl(workdir / "metrics.jsonl")) if watched else None
  if scale:
    lines.append(
      f"  gradient noise scale {scale:,.0f} {run['unit']}, over the last half of the run"
    )
  samples = read_jsonl(workdir / "samples.jsonl")
  if samples:
    cfg = read_config(workdir)
    apart = family_of(cfg.model).reads_source or answers_chats(cfg)
    between = " -> " if apart else ""
    shown = between.join(str(samples[-1].get(part, "")) for part in ("prompt", "text"))
    lines += ["", "sample: " + shown.strip(), ""]
  if run["status"] == "done":
    lines += ["next:", *(f"  {command}" for command in _next_commands(workdir, run["argv"]))]
  elif run["status"] == "interrupted":
    lines.append("resume with: python " + shlex.join(run["argv"]))
  return "\n".join(lines)


def _read(workdir) -> dict:
  """run.json with what is shown of it, whatever else it lacks."""
  run: dict = {
    "status": "unknown",
    "reason": None,
    "argv": [],
    "unit": "tokens",
    **read_run(workdir),
  }
  final = {k: v for k, v in run.get("final", {}).items() if isinstance(v, int | float)}
  return run | {"final": final, "argv": [str(word) for word in run["argv"]]}


def _state(workdir) -> str:
  run = _read(workdir)
  scores = run["reason"] or _scores(workdir, run["final"]).get("val", "")
  return "; ".join([f"{run['status']}  {scores}", *_no_better_than_chance(workdir, run["final"])])


def _scores(workdir, final) -> dict[str, str]:
  """{"val": "2.5 nats/token, 1.2 bits/byte, ..."}, as the objective's metrics are shown."""
  metrics = objective_of(read_config(workdir).objective).eval_metrics
  names = dict.fromkeys(key.split("/")[1] for key in final if key.startswith("eval/"))
  return {
    name: ", ".join(
      metric.form.format(final[f"eval/{name}/{what}"])
      for what, metric in metrics.items()
      if metric.form and f"eval/{name}/{what}" in final
    )
    for name in names
  }


def _start(workdir) -> list[str]:
  """["8.2 s until the first step: imports 3.2, data 2.0, compile 3.0"], of the last process that trained."""
  records = [r for r in read_jsonl(workdir / "perf.jsonl") if START[0] in r]
  if not records:
    return []
  spent = {key.rpartition("_")[2]: records[-1].get(key, 0.0) for key in START}
  parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items())
  return [f"{sum(spent.values()):.1f} s until the first step: {parts}"]


def _no_better_than_chance(workdir, final) -> list[str]:
  """A line for each validation score that is no better than Objective.chance, once warm-up is over."""
  cfg = read_config(workdir)
  objective, last = objective_of(cfg.objective), read_jsonl(workdir / "metrics.jsonl")[-1:]
  if not last or last[0].get("step", 0) <= schedule_steps(cfg)[1]:
    return []
  lines = []
  for name, guess in objective.chance(cfg).items():
    key, lower = f"eval/val/{name}", objective.eval_metrics[name].better == "lower"
    if key in final and (final[key] >= guess if lower else final[key] <= guess):
      lines.append(
        f"{key} {final[key]:.4f} is no better than a uniform guess, {guess:.4f}: nothing was learned; "
        "lower optim.peak_lr or raise optim.warmup_frac"
      )
  return lines


def _next_commands(workdir: pathlib.Path, argv: Sequence[str]) -> list[str]:
  cfg = read_config(workdir)
  rate = f"{cfg.optim.peak_lr / 2:g}"
  again = [
    *_without(argv, "--workdir", "--config.optim.peak_lr", "--profile"),
    "--workdir",
    f"{workdir}-lr{rate}",
  ]
  reproduced = any(word.partition("=")[0] == "--reproduce" for word in argv)  # stands alone
  chat = ["--chat"] if answers_chats(cfg) else []
  generate = ["python", "-m", "lm.generate", "--workdir", str(workdir), *chat, "--prompt"]
  other = ["--data", "python", "--max_tokens", "500000"] if kind_of(cfg).any_text else []
  return [
    *([shlex.join([*generate, cfg.sample.prompt])] if family_of(cfg.model).init_cache else []),
    shlex.join(["python", "-m", "lm.evaluate", "--workdir", str(workdir), *other]),
    *([] if reproduced else [shlex.join(["python", *again, f"--config.optim.peak_lr={rate}"])]),
  ]


def _without(argv: Sequence[str], *options: str) -> list[str]:
  """The command line without these options and their values."""
  kept, words = [], iter(argv)
  for word in words:
    if word in options:
      next(words, None)
    elif word.split("=")[0] not in options:
      kept.append(word)
  return kept
