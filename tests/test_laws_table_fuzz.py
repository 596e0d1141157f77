"""1,000 tables made up of what people write into them: a clean table or one clear line, never a traceback."""

import gzip
import io
import json

import pytest

from experiments import laws
from experiments.commands import command_line as cli
from experiments.laws.table import Table
from experiments.ledger import fits
from lm.config.errors import ConfigError
from tests.fuzzing import cases

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

NUMBERS = (
  st.floats(allow_nan=True).map(repr)
  | st.integers(-(10**12), 10**25).map(str)
  | st.floats(1e-3, 1e12).map(lambda v: f"{v:,.3f}")
  | st.floats(1e-3, 1e12).map(lambda v: f"{v:,.2f}".translate(str.maketrans(",.", ".,")))
  | st.tuples(st.floats(0.01, 999), st.sampled_from("KMBTkmbt%")).map(lambda p: f"{p[0]:.3g}{p[1]}")
  | st.tuples(st.floats(1, 9), st.integers(-400, 400)).map(lambda p: f"{p[0]:.2f} x 10^{p[1]}")
)
WORDS = st.sampled_from(
  ["", "-", "NaN", "None", "inf", "nan B", "1.2.3", "1,2,3", "2^99999",
   "10^-5", "\u2212", "3.1\u00b10.2", "1e9999", "e5",
   "..", ",", "'", '"', "a,b", "a;b",
   "\u0663", "\u00bd", "1'2", "1 2", "0x1F", "true", "[1, 2]", "$", "run-1", "1_0"]
)  # fmt: skip
CELLS = NUMBERS | WORDS | st.text(max_size=8)
NAMES = st.sampled_from(
  ["params", "N", "Params (M)", "params_B", "tokens", "D", "Tokens (1e9)", "loss", "val/loss", "train/loss",
   "val_loss", "flops", "C (EFLOPs)", "Name", "run_name", "State", "lr", "", " ", "se", "steps",
   "loss - MIN", "(M)", "N (", "~"]
) | st.text(max_size=6)  # fmt: skip
WHERE = st.sampled_from(
  [
    "loss>2",
    "NOT loss>2 OR N=1",
    "(N>1",
    "params=1.4B AND loss<9",
    "lr~[",
    "a",
    "State=finished",
    "~",
    "=",
    "N~N~N",
  ]
) | st.text(max_size=12)
SANE = st.tuples(st.integers(10, 10**6), st.floats(1.5, 9)).map(
  lambda p: (p[0], p[0] * 20, round(p[1], 3))
)


@st.composite
def tables(draw):
  """(bytes of a file, name, conditions): columns of sane and odd cells in one of many forms."""
  header = draw(st.lists(NAMES, min_size=1, max_size=6))
  if draw(st.booleans()):
    header = ["params", "tokens", "loss", *header[3:]]
    rows = [
      [*map(str, draw(SANE)), *(draw(CELLS) for _ in header[3:])]
      for _ in range(draw(st.integers(0, 6)))
    ]
    if rows and draw(st.booleans()):
      rows[-1][draw(st.integers(0, 2))] = draw(CELLS)
    rows *= draw(st.integers(1, 2))
  else:
    rows = draw(st.lists(st.lists(CELLS, max_size=7), max_size=6))
  form = draw(st.sampled_from([",", ";", "\t", "|", "&", "  ", "csv", "json", "jsonl", "columns"]))
  if form == "csv":
    import csv

    file = io.StringIO()
    csv.writer(file).writerows([header, *rows])
    text = file.getvalue()
  elif form in ("json", "jsonl"):
    objects = [dict(zip(header, row, strict=False)) for row in rows]
    text = json.dumps(objects) if form == "json" else "\n".join(map(json.dumps, objects))
  elif form == "columns":
    text = json.dumps(
      {name: [row[i] if i < len(row) else None for row in rows] for i, name in enumerate(header)}
    )
  else:
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(
      form.join(row) for row in [header, *rows]
    )
  data = text.encode(draw(st.sampled_from(["utf-8", "utf-16", "utf-8-sig"])), "surrogatepass")
  damage = draw(st.sampled_from(["no", "no", "no", "cut", "gzip", "torn gzip", "byte"]))
  if damage == "cut":
    data = data[: draw(st.integers(0, len(data)))]
  elif damage == "gzip":
    data = gzip.compress(data)
  elif damage == "torn gzip":
    data = gzip.compress(data)[: draw(st.integers(0, 30))]
  elif damage == "byte" and data:
    at = draw(st.integers(0, len(data) - 1))
    data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
  return data, draw(st.lists(WHERE, max_size=1)) if draw(st.booleans()) else []


FLAGS = st.lists(
  st.sampled_from(
    ["--best", "--force", "--drop_repeats", "--decimal=comma", "--decimal=point", "--unit=params=M",
     "--se=se", "--law=isoflop", "--law=E + A*N^-a + B*D^-b", "--law=E + A*S^-a", "--law=hyper",
     "--of=lr", "--loss=loss", "--weight=lr", "--drop_highest=1", "--cluster=Name"]
  ), max_size=3,
)  # fmt: skip


@cases(1000)
@hypothesis.given(tables(), FLAGS)
def check(folder, monkeypatch, table, flags):
  data, where = table
  path = folder / "t.csv"
  path.write_bytes(data)
  words = ["fit", "--csv", str(path), *(f"--where={w}" for w in where), *flags]
  seen = []
  accept = lambda table, *_, **__: seen.append(table)
  monkeypatch.setattr(fits.laws, "fit_table", accept)
  monkeypatch.setattr(fits, "FITTERS", dict.fromkeys(fits.FITTERS, accept))
  options = cli.make_parser("").parse_args(words)
  try:
    asked, names = fits.settings(options), fits.column_names(options)
    units = fits.units(options.unit)
    fits.fit_csv(
      options.csv,
      options.law or "chinchilla",
      names,
      options.where,
      units,
      options.decimal,
      **asked,
    )
  except ConfigError as error:
    line = str(error)
    assert line and len(line.splitlines()) == 1, repr(line)
  else:
    assert isinstance(seen[0], Table) and len(seen[0])
    assert len(seen[0]) + len(seen[0].skipped) >= len(seen[0].rows)


def test_a_table_of_anything_is_read_or_answered_in_one_line(tmp_path, monkeypatch):
  known = dict(laws.LAWS)
  try:
    check(tmp_path, monkeypatch)
  finally:
    laws.LAWS.clear()
    laws.LAWS.update(known)
