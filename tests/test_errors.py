"""Bad input gets one line, `key=value: the rule; the remedy`, and exit code 2, before any compilation."""

import subprocess
import sys

import pytest

from experiments import __main__ as experiments
from experiments.ledger import ledger
from experiments.sweep import search
from lm.config import command_line
from lm.config.errors import ConfigError, number_of, suggest
from lm.data.sources import facts, reversed_words
from lm.data.tokenizers import known_vocab_size
from lm.runs import rundir
from lm.setup.load import load_config
from lm.setup.resolve import resolve

DEFAULT = "configs/default.py"
COUNTED = {
  "facts": lambda name: facts.read(name, "data.sources=facts"),
  "reversed": lambda name: reversed_words.read(name, None, "data.sources=reversed"),
}

# What is set -> the exact words.
BAD = [
  ({"model.widht": "3"}, "model.widht=3: no such key; did you mean model.width?"),
  ({"width": "3"}, "width=3: no such key; did you mean model.width?"),
  (
    {"data.weights": "x"},
    "data.weights=x: must be a list of numbers with commas between; for example "
    "--config.data.weights=0.7,0.3",
  ),
  ({"model": "x"}, "model=x: is a section; set a key of it, such as model.family"),
  (
    {"model.width": "abc"},
    "model.width=abc: must be an integer; for example --config.model.width=8",
  ),
  ({"model.width": "0"}, "model.width=0: must be at least 1; try 128"),
  (
    {"train.batch_size": "1.5"},
    "train.batch_size=1.5: must be an integer; for example --config.train.batch_size=8",
  ),
  (
    {"model.bias": "maybe"},
    "model.bias=maybe: must be a boolean; for example --config.model.bias=True",
  ),
  ({"seed": "-1"}, "seed=-1: must be in [0, 2147483647]; try 0"),
  ({"optim.b1": "1"}, "optim.b1=1.0: must be in [0, 1); try 0.9"),
  ({"optim.peak_lr": "nan"}, "optim.peak_lr=nan: must be at least 0 and finite; try 1e-3"),
  ({"optim.peak_lr": "1e400"}, "optim.peak_lr=inf: must be at least 0 and finite; try 1e-3"),
  ({"optim.clip_norm": "0"}, "optim.clip_norm=0.0: must be greater than 0; try 1"),
  ({"model.dropout": "1"}, "model.dropout=1.0: must be in [0, 1); try 0.1"),
  ({"data.val_fraction": "0.7"}, "data.val_fraction=0.7: must be in (0, 0.5]; try 0.05"),
  ({"train.accumulate": "0"}, "train.accumulate=0: must be at least 1; try 1"),
  (
    {"optim.name": "adamv"},
    "optim.name=adamv: must be one of sgd, adam, adamw, adagrad, lion, adafactor, muon, "
    "soap, ademamix, adopt, schedule_free, prodigy, sophia; did you mean adam?",
  ),
  (
    {"model.dtype": "float16"},
    "model.dtype=float16: must be one of float32, bfloat16; did you mean bfloat16?",
  ),
  (
    {"data.sources": "foo"},
    "data.sources=foo: no such source; use one of docstrings, python, text, hub, tfds, oracle, facts, "
    "parallel, reversed, synthetic",
  ),
  ({"data.sources": ""}, "data.sources=(): must name at least one source; use docstrings"),
  (
    {"data.sources": "text"},
    "data.sources=text: text needs a name; use e.g. text:books/*.txt",
  ),
  (
    {"data.weights": "1,2"},
    "data.weights=1.0,2.0: must have one weight per source (1); give 1 or none",
  ),
  (
    {"data.weights": "-1"},
    "data.weights=-1.0: every weight must be positive; drop the source instead",
  ),
  (
    {"data.max_chars": "5", "data.min_chars": "9"},
    "data.max_chars=5: must not be below data.min_chars=9; raise it or use None",
  ),
  (
    {"data.tokenizer": "gpt2"},
    "data.tokenizer_path=None: data.tokenizer=gpt2 needs a folder with vocab.json and merges.txt; "
    "set --config.data.tokenizer_path",
  ),
  (
    {"data.tokenizer": "sentencepiece", "data.tokenizer_path": "nowhere.model"},
    "data.tokenizer_path=nowhere.model: must be a .model file, and nowhere.model is not a file; "
    "correct the path",
  ),
  (
    {"train.steps": "10"},
    "train.steps=10: exactly one budget must be set, of train.steps, train.tokens, "
    "train.tokens_per_param, train.flops, train.seconds (now train.steps=10, train.tokens=2500000); drop "
    "one with --config.train.tokens=None",
  ),
  (
    {"train.tokens": "None"},
    "train.steps=None: exactly one budget must be set, of train.steps, train.tokens, "
    "train.tokens_per_param, train.flops, train.seconds; set --config.train.steps=1000",
  ),
  (
    {"optim.warmup_tokens": "5"},
    "optim.warmup_tokens=5: exactly one of optim.warmup_frac and optim.warmup_tokens must be set "
    "(warmup_frac=0.05); set the other to None",
  ),
  (
    {"optim.schedule": "exponential", "optim.final_lr_frac": "0"},
    "optim.final_lr_frac=0.0: an exponential schedule must end above 0; use 0.01",
  ),
  (
    {"model.heads": "3"},
    "model.width=128: must be divisible by 3 (model.heads, as head_dim is None); use 126 or 129",
  ),
  (
    {"model.kv_heads": "3"},
    "model.kv_heads=3: must divide model.heads=4; use one of 1, 2, 4",
  ),
  (
    {"model.head_dim": "3"},
    "model.head_dim=3: must be even for rotary positions; use 4",
  ),
  (
    {"objective.chunk": "7"},
    "model.seq_len=256: must be divisible by 7 (objective.chunk); use 252 or 259",
  ),
  (
    {"train.batch_size": "10", "train.accumulate": "4"},
    "train.batch_size=10: must be divisible by 4 (train.accumulate); use 8 or 12",
  ),
  ({"eval.sets": "books"}, "eval.sets=books: must be name=source; for example books=text:books/*.txt"),
  ({"eval.sets": "val=python"}, "eval.sets=val=python: the name val is taken; choose another"),
  (
    {"eval.stop_metric": "eval/vla/loss"},
    "eval.stop_metric=eval/vla/loss: must be one of eval/val/loss, eval/val/bpb, eval/val/accuracy; "
    "did you mean eval/val/loss?",
  ),
  ({"mesh.fsdp": "0"}, "mesh.fsdp=0: must be at least 1, or -1 for the rest; use 1"),
  (
    {"mesh.fsdp": "-1"},
    "mesh.fsdp=-1: only one axis can take the rest; mesh.replica does",
  ),
  # Found when the config meets the tokenizer and the devices.
  (
    {"model.vocab_size": "100"},
    "model.vocab_size=100: must hold the tokenizer's 2048 entries; use 2048 or None",
  ),
  (
    {"train.batch_size": "12"},
    "train.batch_size=12: must be divisible by 8 (devices along mesh.replica, mesh.fsdp and mesh.expert); "
    "use 8 or 16",
  ),
  (
    {"mesh.replica": "3"},
    "mesh.replica=3: the mesh (replica=3) must use 8 devices; set one axis to -1 and let the "
    "others divide the devices",
  ),
  ({"sample.prompt": "a\udcff"}, "sample.prompt=a\\udcff: is no text in UTF-8; convert it"),
  (
    {"train.tokens": "5"},
    "train.tokens=5: must fill at least one step of 4096 tokens; raise the budget or lower "
    "train.batch_size",
  ),
  (
    {"data.tokenizer": "bpe", "data.vocab_size": "100"},
    "data.vocab_size=100: must be in [257, 2147483647]; try 2048",
  ),
]  # fmt: skip


@pytest.mark.parametrize(
  ("overrides", "words"), BAD, ids=lambda v: ",".join(v) if type(v) is dict else ""
)
def test_bad_values_are_named_with_rule_and_remedy(overrides, words):
  with pytest.raises(ConfigError) as error:
    cfg = load_config(DEFAULT, overrides)
    resolve(cfg, known_vocab_size(cfg.data), n_devices=8)
  assert str(error.value) == words


# A command line -> the one line on stderr.
COMMANDS = [
  (["--confg", "x"], "--confg=: no such option; did you mean --config?"),
  (["--config", "configs/nope.py"], "config=configs/nope.py: no such file; did you mean "),
  (["--config", "README.md"], "config=README.md: must be a Python file; see configs/default.py"),
  (
    ["--config", "configs/gpt2.py:125m"],
    "config=configs/gpt2.py:125m: no size 125m of GPT-2; choose from 124m, 355m, 774m, 1558m",
  ),
  (
    ["--config.model.width"],
    "model.width=(nothing): a value must follow; write --config.model.width",
  ),
  (
    ["--config.data.sources=text:nowhere/*.txt"],
    "data.sources=text:nowhere/*.txt: no file matches; ",
  ),
]


@pytest.mark.parametrize(
  ("words", "line"), COMMANDS, ids=lambda v: " ".join(v) if type(v) is list else ""
)
def test_train_prints_one_line_and_exits_with_2(words, line, tmp_path):
  command = [sys.executable, "train.py", "--workdir", str(tmp_path / "run"), *words]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "body, words",
  [
    ("return None", "get_config() must return a ConfigDict, not NoneType"),
    ("return {'seed': 3}", "get_config() must return a ConfigDict, not dict"),
    ("raise SystemExit(7)", "the file fails with SystemExit: 7; run it with python"),
    ("raise KeyError", "KeyError"),
    ("return 1 / 0", "the file fails with ZeroDivisionError: division by zero; run it with python"),
  ],
)
def test_a_config_file_that_gives_none_is_one_line(tmp_path, body, words):
  (tmp_path / "c.py").write_text(f"def get_config():\n  {body}\n")
  with pytest.raises(ConfigError) as error:
    load_config(str(tmp_path / "c.py"))
  assert str(error.value).startswith(f"config={tmp_path / 'c.py'}: {words}")


MADE = (
  "from configs.smoke import get_config as smoke\ndef get_config():\n  c = smoke()\n  c.unlock()\n"
)


@pytest.mark.parametrize(
  "line, words",
  [
    ("c[3] = 4", "what get_config() returns fails with TypeError"),
    (
      "from ml_collections import config_dict\n  c.seed = config_dict.required_placeholder(int)",
      "what get_config() returns fails with RequiredValueError",
    ),
    (
      "import numpy as np\n  c.model.kv_heads = np.arange(2)",
      "model.kv_heads=[0 1]: must be an integer",
    ),
    ("c.model.width = 10**5000", "model.width=(int): cannot be written (Exceeds the limit"),
    (
      "c.extensions = ('.relative',)",
      "extensions=.relative: cannot be imported (is no module's name)",
    ),
    ("c.extensions = ('',)", "extensions=: cannot be imported (is no module's name)"),
    (
      "c.extensions = ('with_slip',)",
      "extensions=with_slip: the module fails with SyntaxError: '(' was",
    ),
    (
      "c.extensions = ('that_raises',)",
      "extensions=that_raises: the module fails with RuntimeError: boo (that_raises.py, line 2); correct",
    ),
  ],
)
def test_odd_values_of_a_config_file_are_one_line(tmp_path, monkeypatch, line, words):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "with_slip.py").write_text("x = (")
  (tmp_path / "that_raises.py").write_text("\nraise RuntimeError('boo\\nfoo')")
  (tmp_path / "c.py").write_text(f"{MADE}  {line}\n  return c\n")
  with pytest.raises(ConfigError) as error:
    load_config(str(tmp_path / "c.py"))
  assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("digits", ["²", "１", "9" * 5000])
def test_digits_that_make_no_count_are_refused(digits, tmp_path):
  for source, words in (("facts", "how many facts"), ("reversed", "how many pairs")):
    with pytest.raises(ConfigError, match=words):
      list(COUNTED[source](digits))
  with pytest.raises(ConfigError, match="must be a number of draws"):
    search.sweep_from_text("configs/smoke.py", [], [digits, "seed=int:0..3"])
  (tmp_path / "checkpoints" / "²").mkdir(parents=True)
  (tmp_path / "checkpoints" / "20").mkdir()
  assert rundir.checkpoint_steps(tmp_path) == {20}


LINE = '{"config": "configs/smoke.py", "overrides": {}, "workdir": "a"}'


@pytest.mark.parametrize(
  "lines, words",
  [
    (LINE.replace("{}", '"x"'), "line 1 must be a JSON object with config, overrides and workdir"),
    (LINE.replace("{}", '[["a", 1]]'), "line 1 must be a JSON object"),
    (LINE.replace('"configs/smoke.py"', "3"), "line 1 must be a JSON object"),
    (LINE.replace('"a"', "5"), "line 1 must be a JSON object"),
    ("[" * 100_000, "line 1 must be a JSON object"),
    (f"{LINE}\n{LINE}", "line 2 has the workdir of another line (a); give each run its own"),
  ],
)
def test_a_stack_that_makes_no_sense_is_one_line(tmp_path, lines, words):
  (tmp_path / "stack").write_text(lines)
  with pytest.raises(ConfigError) as error:
    command_line.read_stack(str(tmp_path / "stack"))
  assert words in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
  (tmp_path / "stack").write_text(LINE + "\r\n", encoding="utf-8-sig")
  assert command_line.read_stack(str(tmp_path / "stack")) == [("configs/smoke.py", {}, "a")]


MANY = "9" * 17


@pytest.mark.parametrize(
  "words, said",
  [
    (["plan", "--config", "configs/smoke.py", "--random", MANY, "seed=int:0..9"], "random="),
    (["plan", "--config", "configs/smoke.py", "--dirichlet", MANY, "data.weights=3"], "dirichlet="),
    (["plan", "--config", "configs/smoke.py", "--halving", "3:99999"], "halving=3:99999: "),
    (["plan", "lr_sweep", "--workers", MANY, "--probe", "never"], "workers="),
    (["plan", "lr_sweep", "--stack", MANY, "--probe", "never"], "stack="),
    (["race", "a:", "b: seed=1", "--budgets", "train.steps=1,2", "--plan", "--seeds", MANY], "seeds="),
    (["fit", "lr_sweep", "--n_boot", MANY], "n_boot="),
    (["fit", "lr_sweep", "--starts", MANY], "starts="),
  ],
)  # fmt: skip
def test_counts_that_no_memory_holds_are_refused_at_once(words, said):
  with pytest.raises(ConfigError, match=f"^{said}"):
    experiments.main(words)


def test_a_grid_of_too_many_runs_is_refused_before_it_is_made(monkeypatch):
  monkeypatch.setattr(search, "grid", lambda axes: pytest.fail("it was made"))
  values = ",".join(map(str, range(400)))
  with pytest.raises(ConfigError, match=r"^runs=64000000: must be in \[0, 100000\]"):
    search.sweep_from_text(
      "configs/smoke.py",
      [f"seed={values}", f"train.steps={values}", f"model.width={values}"],
    )


def test_two_dashes_are_a_value_like_any_other():
  """Python 3.11's argparse makes a list of nothing of `--option=--`."""
  parser = command_line.Parser()
  parser.add_argument("--text")
  parser.add_argument("--n", type=int)
  parser.add_argument("--set", action="append")
  found = parser.parse_args(["--text=--", "--set=--", "--set=a=--"])
  assert (found.text, found.set) == ("--", ["--", "a=--"])
  with pytest.raises(SystemExit) as stopped:
    parser.parse_args(["--n=--"])
  assert stopped.value.code == 2


def test_counts_have_their_nouns_in_the_right_number():
  said = [number_of(n, noun) for noun in ("run", "entry", "class", "key") for n in (0, 1, 2)]
  assert said[:6] == ["0 runs", "1 run", "2 runs", "0 entries", "1 entry", "2 entries"]
  assert said[6:] == ["0 classes", "1 class", "2 classes", "0 keys", "1 key", "2 keys"]
  assert number_of(10240, "step", ",") == "10,240 steps"
  rows = ledger.Ledger(({"name": "a", "status": "done"},))
  assert repr(rows) == "Ledger(1 run, 1 done)"


def test_no_value_moves_a_cursor_or_makes_a_second_line():
  assert str(ConfigError("a=\x1b[2Jb\nc\x85d\x00\te: f")) == r"a=\x1b[2Jb\nc\nd\x00" + "\te: f"


def test_names_of_many_runs_are_suggested_as_they_are():
  names = [f"width={w},lr=0.00{i}" for w in (32, 64, 96) for i in range(1, 9)]
  said = suggest("nope", names)
  assert said.startswith("choose from width=32,lr=0.001, ") and said.endswith(" and 14 more")
  assert suggest("nope", [f"optim.key{i}" for i in range(30)]) == "choose from optim"
