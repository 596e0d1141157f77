"""What Weights & Biases shows of a run, read from the files that `wandb sync` would send."""

import json
import pathlib

import pytest

from experiments.report import mirror as reports
from experiments.report import wandb_offline
from experiments.sweep import Run
from experiments.sweep.sweep import Experiment
from lm.config.errors import ConfigError
from lm.config.schema import LogConfig
from lm.runs.metrics import directions
from lm.runs.mirror import About
from lm.runs.wandb_mirror import WandbMirror, wandb_mode
from tests.fake_runs import SMOKE
from tests.settings import default_config

AUTO = LogConfig(1, "auto", None, None, ())
BETTER = {"eval/val/loss": "lower", "eval/val/accuracy": "higher"}


def records(folder: pathlib.Path) -> list:
  """Every record of the one offline run below a folder."""
  import wandb
  from wandb.proto.wandb_internal_pb2 import Record

  wandb.teardown()  # its service writes a file's last part after the run has finished
  (file,) = folder.rglob("run-*.wandb")
  found = []
  for data in wandb_offline._log_records(file.read_bytes()):
    record = Record()
    record.ParseFromString(data)
    found.append(record)
  return found


def of_kind(found: list, kind: str) -> list:
  return [getattr(r, kind) for r in found if r.WhichOneof("record_type") == kind]


def items(record) -> dict:
  return {
    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.item
  }


def about(workdir, start=0, cfg=AUTO):
  shown = {"model": {"width": 32}, "run": {"parameters": {"total": 7}, "commit": "abc"}}
  return About(
    cfg,
    workdir,
    "abc123",
    start,
    shown,
    "train",
    ("decoder", "next_token"),
    BETTER,
    "eval/val/loss",
  )


def logged(workdir, start=0):
  """A run of two evaluations, the second of them worse."""
  workdir.mkdir(exist_ok=True)
  mirror = WandbMirror(about(workdir, start))
  for step, loss in ((start + 1, 2.0), (start + 2, 3.0)):
    numbers = {"progress/tokens": 8 * step, "progress/flops": 9.0 * step, "train/loss": loss}
    mirror.log(step, {**numbers, "eval/val/loss": loss, "eval/val/accuracy": loss / 10})
    mirror.sample(step, "a", f"text {step}")
  mirror.close()
  return records(workdir)


@pytest.fixture
def environment(monkeypatch, tmp_path):
  """wandb's own words, and none of the machine's."""
  for name in ("PROJECT", "TAGS", "NAME", "JOB_TYPE", "RUN_GROUP", "SWEEP_ID", "API_KEY"):
    monkeypatch.delenv(f"WANDB_{name}", raising=False)
  monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
  monkeypatch.setenv("WANDB_MODE", "offline")
  return monkeypatch


@pytest.mark.slow
def test_an_offline_run_has_axes_best_and_last_values_samples_and_tags(tmp_path, environment):
  found = logged(tmp_path / "width=32")
  (run,) = {r.run_id: r for r in of_kind(found, "run")}.values()
  assert (run.run_id, run.display_name, run.project) == ("abc123", "width=32", "isoflop")
  assert (run.job_type, sorted(run.tags)) == ("train", ["decoder", "next_token"])
  config = {i.key: json.loads(i.value_json) for i in run.config.update}
  assert config["run"]["parameters"]["total"] == 7 and config["model"]["width"] == 32
  defined = {m.name or m.glob_name: m for m in of_kind(found, "metric")}
  assert {"step", "progress/tokens", "progress/flops", "train/*"} <= set(defined)
  assert defined["train/*"].step_metric == "step"
  assert defined["eval/val/loss"].summary.min and defined["eval/val/loss"].summary.last
  assert defined["eval/val/accuracy"].summary.max and not defined["eval/val/accuracy"].summary.min
  rows = [items(h) for h in of_kind(found, "history")]
  assert [(r["step"], r["progress/tokens"], r["eval/val/loss"]) for r in rows] == [
    (1, 8, 2.0),
    (2, 16, 3.0),
  ]
  assert [r["samples/nrows"] for r in rows] == [1, 2]
  (folder,) = (tmp_path / "width=32/wandb").glob("offline-run-*")
  table = json.loads((folder / "files" / rows[-1]["samples/path"]).read_text())
  assert table["columns"] == ["step", "prompt", "text"]
  assert table["data"] == [[1, "a", "text 1"], [2, "a", "text 2"]]
  assert of_kind(found, "stats"), "system metrics"


@pytest.mark.slow
def test_a_run_that_goes_on_shows_the_samples_from_before(tmp_path, environment):
  workdir = tmp_path / "x"
  workdir.mkdir()
  before = [{"step": s, "prompt": "a", "text": f"text {s}"} for s in (1, 2, 3)]
  (workdir / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in before))
  rows = [items(h) for h in of_kind(logged(workdir, start=2), "history")]
  assert [r["samples/nrows"] for r in rows] == [3, 4]  # step 3 is trained, and written, again


@pytest.mark.slow
def test_the_environment_names_project_tags_name_and_kind(tmp_path, environment):
  words = {"PROJECT": "mine", "TAGS": "a, decoder", "NAME": "best", "JOB_TYPE": "pretrain"}
  for name, value in {**words, "RUN_GROUP": "g", "SWEEP_ID": ""}.items():
    environment.setenv(f"WANDB_{name}", value)
  environment.delenv("WANDB_SWEEP_ID")
  run = of_kind(logged(tmp_path / "x"), "run")[0]
  assert (run.project, run.display_name, run.job_type, run.run_group) == (
    "mine",
    "best",
    "pretrain",
    "g",
  )
  assert sorted(run.tags) == ["a", "decoder", "next_token"]


@pytest.mark.parametrize(
  ("asked", "word", "mode"),
  [
    ("auto", "offline", "offline"),
    ("auto", "dryrun", "offline"),
    ("auto", "disabled", "disabled"),
    ("auto", "online", "online"),
    ("auto", None, "offline"),
    ("online", "disabled", "online"),
    ("disabled", "online", "disabled"),
  ],
)
def test_the_mode_is_that_of_the_environment_unless_the_config_says_one(
  asked, word, mode, environment
):
  environment.delenv("WANDB_MODE")
  if word:
    environment.setenv("WANDB_MODE", word)
  assert wandb_mode(asked) == mode


def test_a_mode_that_is_none_is_one_line(environment):
  environment.setenv("WANDB_MODE", "ofline")
  with pytest.raises(ConfigError, match=r"^WANDB_MODE=ofline: must be online, offline or disabled"):
    wandb_mode("auto")
  assert wandb_mode("online") == "online"


def test_what_is_better_is_known_of_every_set_that_is_evaluated():
  found = directions(default_config())
  assert found["eval/val/loss"] == "lower" and found["eval/val/accuracy"] == "higher"
  assert all(key.startswith("eval/val/") for key in found)


@pytest.mark.slow
def test_in_a_trial_of_a_sweep_its_metric_stays_a_plain_number(tmp_path, environment):
  environment.setenv("WANDB_SWEEP_ID", "s")
  workdir = tmp_path / "x"
  workdir.mkdir()
  mirror = WandbMirror(about(workdir))
  mirror.log(1, {"eval/val/loss": 1.0, "eval/val/accuracy": 0.5})
  mirror.close()
  names = {m.name for m in of_kind(records(workdir), "metric")}
  assert "eval/val/accuracy" in names and "eval/val/loss" not in names


@pytest.mark.slow
def test_a_sweep_has_one_report_under_an_id_of_its_own(tmp_path, environment):
  from experiments.ledger.ledger import Ledger

  experiment = Experiment("a sweep", "which?", (Run("a", {}, SMOKE),))
  page = tmp_path / "report.html"
  (tmp_path / "report_figures").mkdir()
  (tmp_path / "report_figures/figure-1-curves.svg").write_text("<svg/>")
  rows = Ledger(({"name": "a", "status": "done", "loss": 2.5},))
  for _ in range(2):
    reports.mirror_report(experiment, rows, page)
  found = records(tmp_path)  # of the second: the first, which was never sent, is gone
  run = of_kind(found, "run")[0]
  assert (run.run_id, run.job_type, run.run_group) == ("report-a-sweep", "report", "a sweep")
  assert run.display_name == "a sweep: report"
  (row,) = [items(h) for h in of_kind(found, "history")]
  assert row["report/runs_done"] == 1 and row["report/least_loss"] == 2.5
  environment.setenv("WANDB_MODE", "disabled")
  before = list(tmp_path.rglob("run-*.wandb"))
  reports.mirror_report(experiment, rows, page)
  assert list(tmp_path.rglob("run-*.wandb")) == before
