"""Back ends in the cloud: what they would create, byte by byte, and programs that stand for the clouds'."""

import copy
import dataclasses
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import time

import fsspec
import pytest
import yaml

from experiments.commands import command_line as cli
from experiments.launch import accelerators, backends, cloud, code, gcloud, jobset, skypilot
from experiments.launch.jobs import Asked
from experiments.sweep import Run, sweep
from lm.config.errors import ConfigError
from tests import jobset_schema
from tests.fake_runs import SMOKE, fake_run

GOLDEN = pathlib.Path(__file__).parent / "golden"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LLAMA = Run("fsdp", {"mesh.fsdp": -1, "mesh.replica": 1}, "configs/llama.py:1b")


@pytest.fixture
def committed(monkeypatch):
  """The code as a clean checkout of one commit."""
  monkeypatch.setattr(code, "check", lambda *_, **__: COMMIT)
  monkeypatch.setattr(
    code, "bundle", lambda folder, *_: code.Code(COMMIT, folder / "code.bundle", None)
  )


def member(run=LLAMA):
  return sweep.resolve_run(run, pathlib.Path("runs/x"))


def asked(**words):
  words = {key: str(value) for key, value in words.items()}
  return Asked("lr_sweep", "gs://bucket/runs/lr_sweep", words=words, dry_run=True)


def same_as_golden(name: str, text: str) -> None:
  file = GOLDEN / name
  if os.environ.get("UPDATE_GOLDEN"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
  assert text == file.read_text(), (
    f"{name} differs from tests/golden/{name}; if that is meant, UPDATE_GOLDEN=1 pytest {__file__}"
  )


# ---- Words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("on", "pairs", "said"),
  [
    ("skypilot", ["chip=v5e", "chip=v5p"], "with=chip: is given twice"),
    ("skypilot", ["chip="], "with=chip=: names nothing"),
    ("skypilot", ["=v5e"], "knows no such option"),
    ("skypilot", ["chip=v5e", "infra=gcp us;rm"], "with=infra=gcp us;rm: must be a name"),
    ("skypilot", ["chip=v5e", "restarts=-1"], "restarts=-1: must be a whole number of at least 0"),
    ("gcloud", ["zone=us-east5-a", "vms=a,b", "chips=4"], "with=chips=4: is of slices"),
    ("gcloud", ["zone=us-east5-a", "vms=a,b", "spot=yes"], "with=spot=yes: is of slices"),
    ("gcloud", ["zone=us-east5-a", "vms=a,a"], "with=vms=a,a: names a machine twice"),
    ("gcloud", ["zone=us-east5-a", "vms=a,,b"], "with=vms=a,,b: must be a name"),
    ("jobset", ["chip=v5e", "image=a b"], "with=image=a b: must be a name"),
    ("jobset", ["chip=v5e", "namespace=A b"], "with=namespace=A b: must be a name"),
    ("jobset", ["chip=v5e", "queue=yes: [x]"], "with=queue=yes: \\[x\\]: must be a name"),
    ("jobset", ["chip=v5e", "account=a_b"], "with=account=a_b: must be a name"),
  ],
)
def test_words_that_mean_nothing_there_are_refused(on, pairs, said, committed):
  with pytest.raises(ConfigError, match=said):
    row, words = backends.find(on, pairs)
    row.make(asked(**words), [member(Run("a", {}, SMOKE))])


def test_no_restart_is_a_number_of_restarts(committed):
  made = jobset.make(asked(chip="v5e", restarts="0"), [member(Run("a", {}, SMOKE))])
  assert "maxRestarts: 0" in made.dry_run([member(Run("a", {}, SMOKE))])


@pytest.mark.parametrize("experiment", ["1b", "Ü", "-", "2026.x", "lr"])
def test_names_of_jobs_begin_with_a_letter_as_clouds_ask(experiment):
  name = cloud.job_name(Asked(experiment, f"gs://b/{experiment}"), [])
  assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) and len(name) <= 45


# ---- Slices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "chips", "hosts", "label"),
  [("v5e", 64, 16, "v5litepod-64"), ("v5p", 16, 4, "v5p-32"), ("v6e", 32, 8, "v6e-32")],
)
def test_the_smallest_slice_that_fits_is_taken(name, chips, hosts, label):
  placed = accelerators.place([member()], name, None)
  family = accelerators.CHIP_FAMILIES[name]
  assert (placed.chips, placed.hosts) == (chips, hosts)
  assert placed.accelerator(family.gcloud) == label
  assert placed.bytes <= accelerators.ROOM * family.hbm
  with pytest.raises(ConfigError, match=r"run fsdp: needs .* GB on each device"):
    accelerators.place([member()], name, chips // 2)
  larger = accelerators.place([member()], name, chips * 2)
  assert larger.seconds < placed.seconds and larger.dollars > 0.9 * placed.dollars


def test_a_mesh_decides_the_slice_where_it_leaves_nothing_open():
  fixed = Run("fixed", {"mesh.fsdp": 8, "mesh.replica": 1, "train.batch_size": 8}, SMOKE)
  assert accelerators.place([member(fixed)], "v6e", None).chips == 8
  odd = Run(
    "odd", {"mesh.fsdp": 6, "mesh.replica": 1, "train.batch_size": 6, "model.width": 48}, SMOKE
  )
  with pytest.raises(ConfigError, match="run odd: its mesh is of 6 devices, which no slice"):
    accelerators.place([member(odd)], "v6e", None)
  with pytest.raises(ConfigError, match=r"chips=7: no slice of v6e has that size; use one of 1, 4"):
    accelerators.place([member()], "v6e", 7)


def test_what_fits_nowhere_and_unknown_chips_are_refused():
  huge = Run("huge", {"model.width": 65536, "model.heads": 512, "model.depth": 128}, SMOKE)
  with pytest.raises(
    ConfigError, match=r"run huge: .* on each device of 8 v5e chips, which have 17;"
  ):
    accelerators.place([member(huge)], "v5e", None)
  with pytest.raises(ConfigError, match="with=chip=v5x: is not on offer there; did you mean v5"):
    accelerators.find_chip_family("v5x")
  with pytest.raises(ConfigError, match="with=chip: is missing; name one: v5e"):
    accelerators.find_chip_family(None)


# ---- Code ----------------------------------------------------------------------------------------


def git(folder, *words):
  identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
  subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_the_code_of_a_commit_travels_and_changes_only_if_asked(tmp_path):
  repo = tmp_path / "repo"
  repo.mkdir()
  git(repo, "init")
  (repo / "a.txt").write_text("one\n")
  git(repo, "add", ".")
  git(repo, "commit", "-m", "first")
  there = tmp_path / "there"
  sent = code.bundle(there, False, repo)
  assert sent.patch is None
  (repo / "a.txt").write_text("two\n")
  (repo / "new.bin").write_bytes(bytes(range(256)))
  with pytest.raises(
    ConfigError, match=r"code=.*: is changed and not committed; commit it, or send"
  ):
    code.bundle(there, False, repo)
  sent = code.bundle(there, True, repo)
  status = subprocess.run(
    ["git", "status", "--porcelain"], cwd=repo, capture_output=True, text=True
  )
  assert status.stdout == " M a.txt\n?? new.bin\n"  # the user's index is as it was
  script = "\n".join(["set -eu", *code.unpack(sent)])
  for _ in range(2):  # a machine that is recovered unpacks again
    subprocess.run(["bash", "-c", script], cwd=there, check=True, capture_output=True)
    assert (there / "isoflop" / "a.txt").read_text() == "two\n"
    assert (there / "isoflop" / "new.bin").read_bytes() == bytes(range(256))


def test_machines_install_what_the_constraints_pin():
  lines = code.install("tpu", "gs://bucket/runs")
  assert (code.REPO / code.CONSTRAINTS).exists() and code.PYTHON.replace(
    ".", ""
  ) in code.CONSTRAINTS
  assert f"-c {code.CONSTRAINTS} -r requirements.txt" in lines[-1]
  pinned = (code.REPO / code.CONSTRAINTS).read_text()
  assert "\njax==" in pinned and "\ngcsfs==" in pinned


@pytest.mark.parametrize("on", [skypilot, jobset, gcloud])
def test_a_dry_run_names_the_runs_and_ends_with_what_all_of_them_cost(on, committed):
  members = [member(Run(f"s{i}", {"seed": i}, SMOKE)) for i in range(5)]
  words = {"chip": "v5e"} | ({"zone": "us-east5-a"} if on is gcloud else {})
  text = on.make(asked(**words), members).dry_run(members)
  each = accelerators.place(members[:1], "v5e", None).dollars
  assert text.splitlines()[-1].startswith("# in all: 5 jobs, ")
  assert f"about {5 * each:,.2f} USD at list price" in text.splitlines()[-1]
  assert all(f"s{i}" in text for i in range(5))
  free = jobset.make(asked(chip="tpu7x"), members).dry_run(members)
  assert free.splitlines()[-1].endswith("no list price is published")
  assert on.make(asked(**words), members).dry_run([]) == "nothing to do"


# ---- SkyPilot ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e", "h100"])
def test_skypilot_tasks_are_as_written(chip, committed):
  text = skypilot.make(asked(chip=chip, mfu=0.5), [member()]).dry_run([member()])
  same_as_golden(f"skypilot-{chip}.yaml", text)


def test_jobs_that_log_to_wandb_get_its_key_by_name_alone(committed, monkeypatch):
  members = [member(Run("a", {}, SMOKE))]
  told = dataclasses.replace(asked(chip="v5e"), settings={"log.wandb": "auto"})
  monkeypatch.setenv("WANDB_API_KEY", "verysecret")
  text = skypilot.make(told, members).dry_run(members)
  assert yaml.safe_load(text)["secrets"] == {"WANDB_API_KEY": None} and "verysecret" not in text
  assert "secrets" not in skypilot.make(asked(chip="v5e"), members).dry_run(members)
  monkeypatch.delenv("WANDB_API_KEY")
  assert "secrets" not in skypilot.make(told, members).dry_run(members)


def test_a_stack_is_one_task_with_its_file(committed):
  members = [member(Run(f"s{i}", {"seed": i}, SMOKE)) for i in range(3)]
  backend = skypilot.make(asked(chip="v6e", stacked="yes", spot="no"), members)
  text = backend.dry_run(members)
  assert text.count("accelerators:") == 1 and "tpu-v6e-1: 1" in text and "use_spot: false" in text
  (job,) = backend.jobs(members)
  ((path, content),) = job.files.items()
  assert f"--stack ../{path}" in text and f"~/{path}: " in text
  assert [json.loads(line)["workdir"] for line in content.splitlines()] == [
    f"gs://bucket/runs/lr_sweep/s{i}" for i in range(3)
  ]


@pytest.mark.slow
def test_skypilot_itself_accepts_every_task(tmp_path, committed):
  sky = shutil.which("sky")
  if sky is None:
    pytest.skip("no sky: pip install skypilot in an environment of its own")
  python = pathlib.Path(sky).resolve().parent / "python"
  files = []
  for chip in skypilot.OFFERED:
    for spot in ("yes", "no"):
      backend = skypilot.make(asked(chip=chip, spot=spot), [member()])
      folder = cloud.local_folder(backend.asked, "skypilot")
      (tmp_path / folder).mkdir(parents=True, exist_ok=True)
      (tmp_path / folder / "code.bundle").touch()
      files.append(tmp_path / f"{chip}-{spot}.yaml")
      files[-1].write_text(backend.dry_run([member()]))
  check = "import sys, sky\nfor f in sys.argv[1:]: print(sky.Task.from_yaml(f).resources)"
  out = subprocess.run(
    [python, "-c", check, *map(str, files)], cwd=tmp_path, capture_output=True, text=True
  )
  assert out.returncode == 0, out.stderr
  assert len(out.stdout.splitlines()) == len(files) and "tpu-v5p-32" in out.stdout


FAKE_SKY = """#!{python}
import json, pathlib, sys
file = pathlib.Path(__file__).with_name("jobs.json")
jobs = json.loads(file.read_text()) if file.exists() else []
words = sys.argv[1:]
if words[:2] == ["jobs", "launch"]:
  name = words[words.index("--name") + 1]
  jobs.append({{"job_id": len(jobs) + 1, "job_name": name, "status": "PENDING", "yaml": words[-1]}})
elif words[:2] == ["jobs", "cancel"]:
  for job in jobs:
    if job["job_name"] == words[-1]: job["status"] = "CANCELLED"
elif words[:2] == ["jobs", "queue"]:
  print("Fetching managed job statuses...")
  print(json.dumps(jobs))
else:
  sys.exit("unknown: " + " ".join(words))
file.write_text(json.dumps(jobs))
"""


@pytest.fixture
def fake_sky(tmp_path, monkeypatch):
  """A program `sky` that keeps its jobs in a file."""
  program = tmp_path / "bin" / "sky"
  program.parent.mkdir()
  program.write_text(FAKE_SKY.format(python=sys.executable))
  program.chmod(program.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
  fsspec.filesystem("memory").store.clear()
  return program.with_name("jobs.json")


def experiments(*words):
  options = cli.make_parser("about").parse_args(list(words))
  return options.act(options)


def test_jobs_in_the_cloud_are_submitted_once_and_read_back(
  fake_sky, committed, tmp_path, capsys, monkeypatch
):
  done = fake_run(tmp_path / "done", {"optim.peak_lr": 1e-3})  # a run that ended earlier
  monkeypatch.chdir(tmp_path)
  root = "memory://bucket/runs"
  words = ("--config", SMOKE, "--grid", "optim.peak_lr=1e-3,2e-3,4e-3", "--root", root)
  on = ("--on", "skypilot", "--with", "chip=v5e", "--save_as", "s")
  run = lambda *more: experiments("run", *words, *on, "--json", *more)
  assert run("--dry_run") == 0 and not fake_sky.exists()
  capsys.readouterr()

  bucket = fsspec.filesystem("memory")
  bucket.put(f"{tmp_path}/done/", "/bucket/runs/s/peak_lr=1e-3/", recursive=True)
  assert done and run() == 0
  rows = {row["name"]: row["status"] for row in json.loads(capsys.readouterr().out)["runs"]}
  assert rows == {"peak_lr=1e-3": "done", "peak_lr=2e-3": "queued", "peak_lr=4e-3": "queued"}
  submitted = json.loads(fake_sky.read_text())
  assert len(submitted) == 2
  assert "memory://bucket/runs/s/peak_lr=2e-3" in pathlib.Path(submitted[0]["yaml"]).read_text()

  run()  # nothing is sent twice
  assert json.loads(fake_sky.read_text()) == submitted
  submitted[0]["status"] = "RUNNING"
  submitted[1]["status"] = "FAILED_NO_RESOURCE"
  fake_sky.write_text(json.dumps(submitted))
  capsys.readouterr()
  experiments("status", *words, "--save_as", "s", "--on", "skypilot", "--json")
  rows = {row["name"]: row["status"] for row in json.loads(capsys.readouterr().out)}
  assert rows == {"peak_lr=1e-3": "done", "peak_lr=2e-3": "running", "peak_lr=4e-3": "waiting"}
  run()  # what failed is sent again
  assert [job["job_name"] for job in json.loads(fake_sky.read_text())][1:] == [
    submitted[1]["job_name"]
  ] * 2
  row, given = backends.find("skypilot", ["chip=v5e"])
  backend = row.make(Asked("s", f"{root}/s", words=given), [])
  ticket = skypilot.Ticket("skypilot", submitted[0]["job_name"], "", 0.0)
  backend.cancel(ticket)
  assert backend.poll([ticket])[0] == skypilot.State("ended", None, "cancelled")


def test_what_the_cloud_needs_is_asked_for_before_anything_is_created(
  committed, monkeypatch, tmp_path
):
  with pytest.raises(
    ConfigError, match=r"root=runs: runs of --on skypilot must outlive their machines"
  ):
    skypilot.make(Asked("s", "runs/s", words={"chip": "v5e"}), [member()])
  outside = tmp_path / "mine.py"
  shutil.copy(SMOKE, outside)
  with pytest.raises(ConfigError, match=r"config=.*mine.py: lies outside the code"):
    skypilot.make(asked(chip="v5e"), [member(Run("a", {}, str(outside)))])
  with pytest.raises(ConfigError, match="with=spot=maybe: must be yes or no"):
    skypilot.make(asked(chip="v5e", spot="maybe"), [member()])
  monkeypatch.setenv("PATH", "")
  with pytest.raises(ConfigError, match=r"on=skypilot: there is no sky here; pip install"):
    skypilot.make(Asked("s", "gs://b/s", words={"chip": "v5e"}), [member()])


# ---- Queued resources ----------------------------------------------------------------------------


def write_files(folder, text):
  """The files that a dry run prints, written; returns their paths."""
  paths = []
  for part in text.split("# ==> ")[1:]:
    name, _, content = part.partition("\n")
    paths.append(folder / pathlib.Path(name).name)
    paths[-1].write_text(content)
  return paths


GCLOUD = {
  "single": {"chip": "v5p"},
  "multislice": {"chip": "v6e", "slices": 2, "chips": 16, "spot": "no", "project": "mine"},
  "vms": {"vms": "first,second"},
}


@pytest.mark.parametrize("case", GCLOUD)
def test_scripts_for_slices_are_as_written_and_pass_shellcheck(case, committed, tmp_path):
  words = GCLOUD[case] | {"zone": "us-east5-a"}
  members = [member(), member(Run("other", {**LLAMA.overrides, "seed": 1}, LLAMA.config))]
  text = gcloud.make(asked(**words), members).dry_run(members)
  same_as_golden(f"gcloud-{case}.txt", text)
  if shutil.which("shellcheck"):
    paths = [path for path in write_files(tmp_path, text) if path.suffix == ".sh"]
    out = subprocess.run(["shellcheck", *paths], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


# python3 of the fake machines: makes an environment whose python only writes down what it was to train.
FAKE_PYTHON = r"""#!/bin/bash
if [ "$1 $2 $3" = "-m uv venv" ]; then
  mkdir -p .venv/bin
  printf '#!/bin/bash\necho "$@" >>~/../$(basename ~).trained\nexit "${FAIL:-0}"\n' >.venv/bin/python
  chmod +x .venv/bin/python
fi
"""


@pytest.fixture
def fake_gcloud(tmp_path, monkeypatch):
  """A program `gcloud` whose machines are folders, and a small repository in place of this one."""
  base = tmp_path / "bin"
  (base / "there").mkdir(parents=True)
  program = (pathlib.Path(__file__).parent / "fake_gcloud.py").read_text()
  for path, content in (
    (base / "gcloud", f"#!{sys.executable}\n{program}"),
    (base / "there" / "python3", FAKE_PYTHON),
  ):
    path.write_text(content)
    path.chmod(0o755)
  repo = tmp_path / "repo"
  repo.mkdir()
  (repo / "train.py").write_text("")
  git(repo, "init")
  git(repo, "add", ".")
  git(repo, "commit", "-m", "first")
  real = code.bundle
  head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repo, capture_output=True, text=True)
  monkeypatch.setattr(code, "bundle", lambda folder, patch: real(folder, patch, repo))
  monkeypatch.setattr(code, "check", lambda *_, **__: head.stdout.strip())
  monkeypatch.setenv("PATH", f"{base}:{os.environ['PATH']}")
  monkeypatch.setenv("PAUSE", "0.05")
  return base


def wait_for_scripts(backend, tickets):
  deadline = time.monotonic() + 60
  while any(state.status != "ended" for state in backend.poll(tickets)):
    assert time.monotonic() < deadline
    time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("fail", [0, 3])
def test_a_preempted_slice_is_asked_for_again_and_given_back_at_the_end(
  fail, fake_gcloud, tmp_path, monkeypatch
):
  members = [member()]
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("FAIL", str(fail))
  (fake_gcloud / "preempt").touch()
  words = {"chip": "v6e", "slices": "2", "chips": "16", "zone": "z"}
  backend = gcloud.make(Asked("s", "gs://b/s", words=words), members)
  tickets = backend.submit(backend.jobs(members), [()])
  assert backend.poll(tickets)[0].status != "ended"
  wait_for_scripts(backend, tickets)
  calls = (fake_gcloud / "calls").read_text().splitlines()
  created = [call for call in calls if "queued-resources create" in call]
  assert len(created) == 2 and "--node-count=2" in created[0] and "--spot" in created[0]
  # Nothing is left to pay for.
  assert json.loads((fake_gcloud / "resources.json").read_text()) == {}
  for node in (0, 1):
    trained = (fake_gcloud / "vms" / f"{tickets[0].id}-{node}.trained").read_text()
    # The other node may have begun before.
    assert trained.count("--workdir gs://b/s/fsdp") in (1, 2)
  assert "---- started" in (tmp_path / "runs/s/gcloud" / f"{tickets[0].id}.log").read_text()


@pytest.mark.slow
def test_jobs_take_turns_on_machines_that_are_there(fake_gcloud, tmp_path, monkeypatch):
  members = [member(Run(f"r{i}", {"seed": i}, SMOKE)) for i in range(3)]
  monkeypatch.chdir(tmp_path)
  backend = gcloud.make(Asked("s", "gs://b/s", words={"vms": "one,two", "zone": "z"}), members)
  tickets = backend.submit(backend.jobs(members), [()] * 3)
  wait_for_scripts(backend, tickets)
  trained = {vm: (fake_gcloud / "vms" / f"{vm}.trained").read_text() for vm in ("one", "two")}
  assert [trained["one"].count(f"gs://b/s/r{i}") for i in range(3)] == [1, 0, 1]
  assert [trained["two"].count(f"gs://b/s/r{i}") for i in range(3)] == [0, 1, 0]
  assert "create" not in (fake_gcloud / "calls").read_text()


def test_without_gcloud_a_zone_or_an_account_there_is_one_line(fake_gcloud, monkeypatch):
  words = {"chip": "v5p", "zone": "z"}
  with pytest.raises(ConfigError, match="with=zone: is missing; name the zone"):
    gcloud.make(Asked("s", "gs://b/s", words={"chip": "v5p"}), [member()])
  (fake_gcloud / "gcloud").write_text("#!/bin/sh\n")
  with pytest.raises(ConfigError, match="on=gcloud: nobody is signed in; run gcloud auth login"):
    gcloud.make(Asked("s", "gs://b/s", words=words), [member()])
  monkeypatch.setenv("PATH", "")
  with pytest.raises(ConfigError, match="on=gcloud: there is no gcloud here"):
    gcloud.make(Asked("s", "gs://b/s", words=words), [member()])


# ---- JobSets -------------------------------------------------------------------------------------

JOBSET = {
  "v6e-multislice": {"chip": "v6e", "slices": 2, "chips": 16, "queue": "tpus", "spot": "yes"},
  "tpu7x": {"chip": "tpu7x", "account": "trainer"},
  "h100": {"chip": "h100"},
}


@pytest.mark.parametrize("case", JOBSET)
def test_jobsets_are_as_written(case, committed):
  text = jobset.make(asked(**JOBSET[case]), [member()]).dry_run([member()])
  same_as_golden(f"jobset-{case}.yaml", text)


@pytest.mark.parametrize("case", JOBSET)
def test_jobsets_have_the_fields_and_kinds_of_the_published_resource(case, committed):
  jsonschema = pytest.importorskip("jsonschema")
  text = jobset.make(asked(**JOBSET[case]), [member()]).dry_run([member()])
  written = yaml.safe_load(text)
  validate = lambda document: jsonschema.validate(document, jobset_schema.SCHEMA)
  validate(written)
  (workers,) = written["spec"]["replicatedJobs"]
  job = workers["template"]["spec"]
  assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"]
  last = f"{written['metadata']['name']}-{workers['name']}-{workers['replicas'] - 1}-{job['completions'] - 1}"
  assert len(f"{last}-abcde") <= jobset_schema.HOST_NAME
  broken = copy.deepcopy(written)
  broken["spec"]["replicatedJobs"][0]["template"]["spec"]["completion"] = 2
  with pytest.raises(jsonschema.ValidationError, match="'completion' was unexpected"):
    validate(broken)
  (container,) = written["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
    "containers"
  ]
  container["env"] = [{"name": "X", "value": 1}]
  with pytest.raises(jsonschema.ValidationError, match="1 is not of type 'string'"):
    validate(written)


@pytest.mark.parametrize("name, way", [
  ("xpk", "use --on jobset"), ("sky", "use --on skypilot"), ("submitit", "use --on slurm"),
  ("wandb", "experiments wandb-sweep NAME"), ("optuna", "--optuna N KEY=RANGE"),
  ("slum", "did you mean slurm"),
])  # fmt: skip
def test_what_people_call_a_back_end_says_what_does_it_here(name, way):
  with pytest.raises(ConfigError) as said:
    backends.find(name)
  assert str(said.value).startswith(f"on={name}: is no back end; ") and way in str(said.value)


def test_help_lists_the_options_of_back_ends_in_lines_of_their_own(capsys):
  with pytest.raises(SystemExit):
    experiments("run", "--help")
  lines = capsys.readouterr().out.splitlines()
  for name, row in backends.BACKENDS.items():
    for key in row.words:
      assert any(line.split()[:2] == [name, key] or line.split()[:1] == [key] for line in lines), (
        key
      )
  assert max(map(len, lines)) <= 110
