"""Runs of Weights & Biases become a page: those of a project, and which of them count."""

import json
import types

import pytest

from experiments.commands import command_line as cli
from experiments.report import foreign, wandb_online
from lm.config.errors import ConfigError


def command(words):
  options = cli.make_parser("").parse_args(words)
  return options.act(options)


def project_run(name, n_params, n_tokens, state="finished", **summary):
  loss = 1.69 + 406.4 / n_params**0.34 + 410.7 / n_tokens**0.28
  metrics = {"eval/val/loss": {"min": loss, "last": loss + 0.0}, "progress/tokens": n_tokens}
  return types.SimpleNamespace(
    name=name,
    state=state,
    config={"run": {"parameters": {"total": n_params}}, "model": {"width": 32}, "_wandb": {}},
    summary_metrics={**metrics, "_step": 5, "samples": {"_type": "table-file"}, **summary},
  )


@pytest.fixture
def project(monkeypatch):
  """A service that has one project, me/p, of 36 runs, one of which failed at a loss of 9."""
  import wandb

  runs = [
    project_run(f"{n:g}-{d:g}", n, d)
    for n in (1e7, 3e7, 1e8, 3e8, 1e9)
    for d in (2e8, 5e8, 1e9, 3e9, 1e10, 3e10, 1e11)
  ]
  runs.append(project_run("bad", 1e8, 1e9, "failed", **{"eval/val/loss": 9.0}))

  class Api:
    def runs(self, path, **_):
      if path != "me/p":
        raise ValueError(f"Could not find project {path}\nand more")
      return runs

  monkeypatch.setattr(wandb, "Api", Api)
  monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


def test_runs_of_a_project_are_rows(project):
  rows = wandb_online.read_project("me/p")
  assert len(rows) == 36 and rows[0]["state"] == "finished" and rows[-1]["state"] == "failed"
  assert rows[0]["run.parameters.total"] == 1e7 and rows[0]["model.width"] == 32
  assert isinstance(rows[0]["eval/val/loss"], float) and "_step" not in rows[0]
  assert not any(key.startswith("samples") for key in rows[0])


@pytest.mark.slow
def test_a_project_becomes_a_page_of_its_finished_runs(project, tmp_path, capsys):
  out = str(tmp_path / "page.html")
  assert not command(["report", "--wandb", "me/p", "--out", out, "--n_boot", "0"])
  page = (tmp_path / "page.html").read_text()
  assert "36 runs of me/p" in page and "35 runs" in page
  assert "Left out: " in page
  capsys.readouterr()
  asked = {}
  write = foreign.write_csv_report
  foreign.write_csv_report = lambda path, out, names, where, **o: asked.update(where=where)
  try:
    foreign.write_wandb_report("me/p", out, {}, True, ["state!=running"])
  finally:
    foreign.write_csv_report = write
  assert asked["where"] == ["state!=running"]


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["--wandb", "me/q"], r"wandb=me/q: cannot be read \(Could not find project me/q\); check"),
    (["--wandb", "chinchilla"], "wandb=chinchilla: must be ENTITY/PROJECT; alone, --wandb behind"),
    (["--wandb", "me/p", "--csv", "x.csv"], "csv=x.csv: and --wandb; a page is of one of them"),
    (["lr_sweep", "--wandb", "me/p"], "name=lr_sweep: is of an experiment"),
  ],
)
def test_what_is_no_project_is_one_line(words, said, project, tmp_path):
  with pytest.raises(ConfigError, match=said):
    command(["report", *words, "--out", str(tmp_path / "p.html")])


def test_without_a_key_there_is_one_line(monkeypatch, tmp_path):
  monkeypatch.delenv("WANDB_API_KEY", raising=False)
  monkeypatch.setenv("NETRC", str(tmp_path / "none"))
  with pytest.raises(ConfigError, match="wandb=me/p: nobody is signed in; run wandb login"):
    wandb_online.read_project("me/p")


def test_offline_rows_say_how_their_runs_ended(tmp_path):
  import wandb

  settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
  for name, code in (("good", 0), ("bad", 1)):
    run = wandb.init(mode="offline", dir=str(tmp_path), project="p", name=name, settings=settings)
    run.log({"loss": 1.0, "samples": wandb.Table(columns=["a"], data=[["b"]])}, step=1)
    run.finish(exit_code=code)
  wandb.teardown()
  rows = foreign.read_offline(str(tmp_path))
  assert {r["name"]: r["state"] for r in rows} == {"good": "finished", "bad": "failed"}
  assert json.dumps(rows) and not any(key.startswith("samples") for r in rows for key in r)
