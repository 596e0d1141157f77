"""Every command that a page or a help text shows is one that its program's own parser reads."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from lm.config.command_line import split_overrides
from lm.config.errors import ConfigError
from lm.setup.load import load_config
from tests.programs import ROOT, options_of, parse, program, split

PAGES = sorted(
  path.relative_to(ROOT).as_posix()
  for pattern in ("*.md", "lm/**/*.md", "experiments/**/*.md", "benchmarks/**/*.md")
  for path in ROOT.glob(pattern)
)
PROGRAMS = [
  "train.py",
  "lm.generate",
  "lm.evaluate",
  "lm.hf",
  "lm.embed",
  "lm.compact",
  "lm.inspect",
  "experiments",
]
PROGRAMS += ["experiments.coordinate_check", "experiments.report.shelf"]
PROGRAMS += sorted(
  f"benchmarks/{path.name}"
  for path in (ROOT / "benchmarks").glob("*.py")
  if "def main(" in path.read_text()
)
MISTAKES = ("--config.model.widht=", "--config.model.heads=3")  # README shows what one costs
EXTERNAL = ("venv", "pip", "pytest", "lm.config", "-c")  # of Python, or without options of its own


def commands(text: str) -> list[str]:
  """Every `python PROGRAM ...` in the code of a page: inline, in blocks, after `$ `."""
  code = re.findall(r"`(python3? [^`]+)`", text)
  for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
      code += re.findall(r"(?:^|&& |\$ |  )((?:[A-Z_]+=\S+ )*python3? .*?)(?= && |$)", line)
  found = dict.fromkeys(command.strip() for command in code)
  return [command for command in found if split(command)[0] not in EXTERNAL]


def shown() -> list[tuple[str, str]]:
  return [(page, c) for page in PAGES for c in commands((ROOT / page).read_text())]


@pytest.mark.parametrize(("page", "command"), shown())
def test_commands_of_pages_are_read_by_their_programs(page, command, capsys, tmp_path):
  name, words = split(command)
  words = [word for word in words if word not in ("…", "...")]
  if not words:
    assert program(name).main
    return
  try:
    assert parse(name, words).unknown == []
  except SystemExit as refused:
    assert refused.code == 0, f"{page}: {command}: {capsys.readouterr().err}"
  if name != "train.py":
    for spec in re.findall(r"configs/\w+\.py(?::\w+)?", command):
      load_config(spec)
    return
  overrides = split_overrides(words)[1]
  if "data.tokenizer_path" in overrides:  # of a model that the reader has
    overrides["data.tokenizer_path"] = str(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
  if any(mistake in command for mistake in MISTAKES):
    with pytest.raises(ConfigError):
      load_config("configs/default.py", overrides)
  else:
    named = re.search(r"--config (\S+?)(?::runs/\S+)?(?: |$)", command)  # a run is the reader's
    load_config(named[1] if named else "configs/default.py", overrides)


def mentions() -> list[tuple[str, str, list[str]]]:
  """(page, a table's command, the other options its row speaks of)."""
  rows = []
  for page in PAGES:
    for line in (ROOT / page).read_text().splitlines():
      found = commands(line) if line.startswith("| `python ") else []
      options = re.findall(r"`(--\w+)[^`]*`", line)
      if found and options:
        rows.append((page, found[0], options))
  return rows


@pytest.mark.parametrize(("page", "command", "options"), mentions())
def test_options_beside_a_command_are_its_own(page, command, options):
  name, words = split(command)
  known = options_of(name, words)
  for option in options:
    assert option in known, f"{page}: {command} has no {option}"


def test_every_option_in_prose_is_some_programs(capsys):
  from experiments.commands.command_line import COMMANDS

  known = {"--help"}
  for name in PROGRAMS:
    commands_of_it = {"experiments": list(COMMANDS), "lm.hf": ["import", "export"]}.get(
      name, [None]
    )
    for command in commands_of_it:
      known |= options_in_help(name, [command] if command else [], capsys)
  text = (ROOT / "README.md").read_text()
  text = text.replace("--xla_force_host_platform_device_count", "")  # XLA's
  spoken_of = {o for code in re.findall(r"`([^`\n]+)`", text) for o in re.findall(r"--\w+", code)}
  assert {o for o in spoken_of - known if not o.startswith("--config")} == set()


def help_text(name: str, words: list[str], capsys) -> str:
  main = program(name).main
  arguments = [*words, "--help"]
  with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
    patch.setattr("sys.argv", [name, *arguments])
    main(*[arguments] * main.__code__.co_argcount)
  assert ended.value.code == 0
  return capsys.readouterr().out


def options_in_help(name: str, words: list[str], capsys) -> set[str]:
  return set(re.findall(r"^\s+(?:-\w, )?(--\w+)", help_text(name, words, capsys), re.M))


def examples(text: str) -> list[str]:
  """The lines under `examples:` or `example:` of a help text."""
  after = re.split(r"^examples?:\n", text, flags=re.M)
  return [
    part.strip()
    for block in after[1:]
    for line in block.split("\n\n")[0].splitlines()
    for part in line.split(" && ")
    if part.strip().startswith("python ")
  ]


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_has_examples_that_the_program_reads(name, capsys):
  found = examples(help_text(name, [], capsys))
  assert found, f"{name} --help shows no example"
  for example in found:
    assert parse(*split(example)).unknown == [], example


def example_cases():
  """(id, command lines) of each example under --help of experiments; slow where it trains or probes."""
  from experiments.commands.command_line import COMMANDS, ME

  lists = {name: example.split("\n") for name, (_, _, example, _) in COMMANDS.items()}
  whole = examples(program("experiments").__doc__)
  lists |= {
    f"experiments {i}": [line] for i, line in enumerate(whole) if "report seeds" not in line
  }
  lists[f"experiments {len(whole) - 2}"] = whole[-2:]  # a sweep, and its report
  cases = []
  for name, lines in lists.items():
    lines = [line.strip() for line in lines]
    trains = any(re.search(rf"train.py|{ME} run|plan lr_sweep$", line) for line in lines)
    cases.append(pytest.param(lines, id=name, marks=[pytest.mark.slow] if trains else []))
  return cases


@pytest.fixture(scope="module")
def fresh_clone(tmp_path_factory):
  """A copy of what is committed, without a run in it."""
  clone = tmp_path_factory.mktemp("clone")
  for name in ("train.py", "configs", "lm", "experiments"):
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy(ROOT / name, clone / name)
  return clone


@pytest.mark.parametrize("lines", example_cases())
def test_examples_of_experiments_run_in_a_fresh_clone(lines, fresh_clone):
  environment = {
    k: v for k, v in os.environ.items() if k != "XLA_FLAGS"
  }  # one device, as a user has
  for line in lines:
    line = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", line)
    done = subprocess.run(
      line,
      shell=True,
      cwd=fresh_clone,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_a_wrong_option_is_found():
  """The checks above can fail."""
  with pytest.raises(SystemExit):
    parse("experiments", ["run", "lr_sweep", "--workers", "many"])
  assert parse("experiments", ["run", "lr_sweep", "--worker", "2"]).unknown == ["--worker", "2"]
  assert parse("train.py", ["--config.model.width=8", "--workdri", "x"]).unknown
  with pytest.raises(SystemExit):
    parse("benchmarks/fit.py", ["--boot", "many"])
  assert "--export" in options_of("experiments", ["status"])
  assert "--export" not in options_of("experiments", ["plan"])
