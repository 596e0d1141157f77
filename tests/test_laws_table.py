"""Foreign tables: every spelling is read, nothing is dropped without a name, errors say what to type."""

import doctest
import gzip

import numpy as np
import pytest

from experiments import laws
from experiments.laws import cells


def write(tmp_path, text, name="runs.csv"):
  path = tmp_path / name
  path.write_text(text)
  return path


def test_numbers_are_read_in_the_spellings_people_publish(tmp_path):
  path = write(
    tmp_path,
    'Model Size,"Training Tokens, total",loss,note\n"1,234,567",1.4B,3.21,"a, b"\n'
    "2_000_000,300e9,2.5,\n70M,20 000,2.0,x\n",
  )
  t = laws.read_table(path, names={"n_tokens": "Training Tokens, total"})
  np.testing.assert_array_equal(t["n_params"], [1234567, 2e6, 70e6])
  np.testing.assert_array_equal(t["n_tokens"], [1.4e9, 300e9, 20000])
  assert any("thousands" in n for n in t.notes) and any("suffixes" in n for n in t.notes)


def test_decimal_commas_are_told_from_thousands(tmp_path):
  t = laws.read_table(write(tmp_path, "params;tokens;loss\n1000;2000;3,25\n2000;4000;3,125\n"))
  np.testing.assert_array_equal(t["loss"], [3.25, 3.125])
  assert any("decimal point" in n for n in t.notes)


def test_gzip_tabs_byte_order_marks_and_jsonl(tmp_path):
  packed = tmp_path / "runs.csv.gz"
  packed.write_bytes(gzip.compress("\ufeffparams\ttokens\tloss\n10\t20\t3\n".encode()))
  lines = write(
    tmp_path, '{"params": 10, "tokens": 20, "loss": 3}\n{"params": 11, "tokens": null, "loss": 3}\n'
  )
  assert laws.read_table(packed)["n_params"][0] == laws.read_table(lines)["n_params"][0] == 10
  assert np.isnan(laws.read_table(lines)["n_tokens"][1])


def test_rows_that_cannot_be_used_are_counted_by_number_and_reason(tmp_path):
  path = write(
    tmp_path, "params,tokens,loss\n1e3,2e4,3\n1e3,,3\n1e3,2e4,-1\n1e3,2e4,nan\n0,2e4,3\n"
  )
  t = laws.read_table(path).need("n_params", "n_tokens", "loss")
  assert list(t.rows) == [1]
  assert dict(t.skipped) == {
    2: "n_tokens is missing or not a number",
    3: "loss is -1, not > 0",
    4: "loss is missing or not a number",
    5: "n_params is 0, not > 0",
  }


def test_a_column_that_is_not_needed_may_have_holes(tmp_path):
  path = write(tmp_path, "params,tokens,loss,steps\n1e3,2e4,3,\n1e3,2e4,3,0\n")
  assert len(laws.read_table(path).need("n_params", "loss")) == 2


def test_missing_tokens_or_flops_are_derived_and_said_to_be():
  n, c = np.array([1e6, 2e6]), np.array([6e15, 6e15])
  from_flops = laws.from_columns({"n_params": n, "flops": c}).with_flops()
  np.testing.assert_allclose(from_flops["n_tokens"], c / (6 * n))
  assert "n_tokens = flops / (6 n_params)" in from_flops.notes[-1]
  back = laws.from_columns({"n_params": n, "n_tokens": from_flops["n_tokens"]}).with_flops()
  np.testing.assert_allclose(back["flops"], c)


def test_rows_and_units_can_be_chosen(tmp_path):
  path = write(tmp_path, "N,D,loss,set\n1,2,3,a\n4,5,3,b\n7,8,3,a\n")
  t = laws.read_table(path, where=["set=a"], scale={"n_params": 1e6}, labels=["set"])
  np.testing.assert_array_equal(t["n_params"], [1e6, 7e6])
  assert t.skipped == ((2, "not set=a"),) and list(t.labels["set"]) == ["a", "a"]


@pytest.mark.parametrize(
  "text, names, words",
  [
    ("params,tokens,los\n1,2,3\n", {"loss": "loss"}, "did you mean 'los'"),
    ("params,tokens,loss\n1,2,3\n", {"n_params": "Params"}, "did you mean 'params'"),
    ("foo,bar\n1,2\n", {"loss": "xyzzy"}, "columns: foo, bar"),
    ("params,tokens,loss\n1,2,3\n", {"n_params": "size"}, "did you mean 'params'"),
    ("", {}, "empty"),
  ],
)
def test_a_wrong_column_is_one_line_with_the_remedy(tmp_path, text, names, words):
  with pytest.raises(ValueError, match=words) as error:
    laws.read_table(write(tmp_path, text), names=names)
  assert "\n" not in str(error.value)


def test_two_columns_that_look_alike_are_not_guessed_between(tmp_path):
  t = laws.read_table(write(tmp_path, "N,params,tokens,loss\n1,2,3,4\n"))
  with pytest.raises(ValueError, match="'N', 'params' all look like it"):
    t.need("n_params")
  assert (
    laws.read_table(write(tmp_path, "N,params,tokens,loss\n1,2,3,4\n"), names={"n_params": "N"})[
      "n_params"
    ][0]
    == 1
  )


def test_a_table_with_nothing_usable_says_why(tmp_path):
  with pytest.raises(ValueError, match="no usable row"):
    laws.read_table(write(tmp_path, "params,tokens,loss\n1,2,\n")).need("loss")


# one table in many spellings: what people publish, and what spreadsheets and papers make of it
SAME = {
  "comma": "params,tokens,loss\n1000000,2e7,3.25\n2000000,4e7,3.125\n",
  "blank lines and remarks": "# from us\n\nparams,tokens,loss\n\n1e6,2e7,3.25\n2e6,4e7,3.125\n\n",
  "semicolons with decimal commas": "Params;Tokens;Val loss\n1000000;2e7;3,25\n2000000;4e7;3,125\n",
  "a spreadsheet's hint": "sep=;\nparams;tokens;loss\n1000000;2e7;3.25\n2000000;4e7;3.125\n",
  "columns in blanks": "params   tokens  loss\n1M       20M     3.25\n2M       40M     3.125\n",
  "markdown": "| params | tokens | loss |\n|---:|:--|---|\n| 1M | 20M | 3.25 |\n| 2M | 40M | 3.125 |\n",
  "thousands": 'params,tokens,loss\n"1,000,000","20,000,000",3.25\n"2,000,000","40,000,000",3.125\n',
  "thin blanks": "params,tokens,loss\n1\u202f000\u202f000,2e7,3.25\n2 000 000,4e7,3.125\n",
  "powers of ten": "params,tokens,loss\n1x10^6,2\u00d710^7,3.25\n2x10^6,4*10^7,3.125\n",
  "percent": "params,tokens,loss\n1e6,2e7,325%\n2e6,4e7,312.5 %\n",
  "units in the header": "Params (M),Tokens [billions],loss\n1,0.02,3.25\n2,0.04,3.125\n",
  "a trailing comma": "params,tokens,loss,\n1e6,2e7,3.25,\n2e6,4e7,3.125,\n",
  "the same column twice": "params,tokens,loss,loss\n1e6,2e7,3.25,3.25\n2e6,4e7,3.125,3.125\n",
  "a list of objects": '[{"params": 1e6, "tokens": 2e7, "loss": 3.25},'
                       '{"params": "2M", "tokens": 4e7, "loss": "3.125"}]',
  "a quoted line break": 'note,params,tokens,loss\n"a\nb",1e6,2e7,3.25\nc,2e6,4e7,3.125\n',
}  # fmt: skip


@pytest.mark.parametrize("spelling", SAME)
def test_one_table_reads_the_same_in_every_spelling(tmp_path, spelling):
  t = laws.read_table(write(tmp_path, SAME[spelling])).need("n_params", "n_tokens", "loss")
  np.testing.assert_allclose(t["n_params"], [1e6, 2e6])
  np.testing.assert_allclose(t["n_tokens"], [2e7, 4e7])
  np.testing.assert_allclose(t["loss"], [3.25, 3.125])


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-8-sig"])
def test_encodings_of_other_people_are_read(tmp_path, encoding):
  path = tmp_path / "t.csv"
  path.write_bytes("mod\u00e8le,params,tokens,loss\n\u00e9t\u00e9,1e6,2e7,3\n".encode(encoding))
  assert laws.read_table(path)["n_params"][0] == 1e6


def test_what_is_no_text_is_said_to_be_none(tmp_path):
  path = tmp_path / "t.xlsx"
  path.write_bytes(b"PK\x03\x04\0\0\0\0")
  with pytest.raises(ValueError, match="not a text file; export the table as CSV"):
    laws.read_table(path)


def test_a_row_with_too_many_cells_is_left_out_by_name(tmp_path):
  t = laws.read_table(
    write(tmp_path, "params,tokens,loss\n1e6,2e7,3\n1,000,000,2e7,3\n2e6,4e7,3\n")
  )
  assert list(t.rows) == [1, 3]
  assert t.skipped[0][0] == 2 and "5 cells under 3 columns" in t.skipped[0][1]


def test_two_columns_of_one_name_and_other_numbers_are_not_guessed_between(tmp_path):
  path = write(tmp_path, "params,tokens,loss,loss\n1e6,2e7,3,4\n")
  with pytest.raises(ValueError, match=r"'loss', 'loss\.2' all look like it; .*--loss COLUMN"):
    laws.read_table(path).need("loss")
  assert laws.read_table(path, names={"loss": "loss"})["loss"][0] == 3
  assert laws.read_table(path, names={"loss": "loss.2"})["loss"][0] == 4


@pytest.mark.parametrize(
  "where, rows",
  [
    (["set=a"], [1, 3]), (["set!=a"], [2]), (["D>=5"], [2, 3]), (["D<5", "set=a"], [1]),
    (["tokens seen>7e0"], [3]), (["D=8"], [3]),
  ],
)  # fmt: skip
def test_rows_are_chosen_by_conditions(tmp_path, where, rows):
  path = write(tmp_path, "N,D,loss,set,tokens seen\n1,2,3,a,2\n4,5,3,b,5\n7,8,3,a,8\n")
  t = laws.read_table(path, names={"n_tokens": "D"}, where=where)
  assert list(t.rows) == rows and len(t.skipped) == 3 - len(rows)


def test_a_missing_column_is_answered_with_the_nearest_and_the_option(tmp_path):
  t = laws.read_table(write(tmp_path, "params_active_precise,tokens,final\n1,2,3\n"))
  with pytest.raises(ValueError, match=r"did you mean 'params_active_precise'.*--params COLUMN"):
    t.need("n_params")


def test_the_only_count_of_parameters_is_used_and_a_total_goes_first(tmp_path):
  bare = laws.read_table(write(tmp_path, "params_no_embed,tokens,loss\n1,2,3\n"))
  both = laws.read_table(write(tmp_path, "params,params_no_embed,tokens,loss\n5,1,2,3\n"))
  assert bare["n_params"][0] == 1 and bare.source["n_params"] == "params_no_embed"
  assert (both["n_params"][0], both["n_params_non_embedding"][0]) == (5, 1)


def test_examples_in_docstrings_hold():
  result = doctest.testmod(cells)
  assert result.attempted and not result.failed


# ---- Numbers of other places: the column as a whole decides, two readings are refused ----

LOCALES = {
  "a suffix after a decimal comma": ("params;tokens;loss\n1,4B;2,8B;3,25\n70M;1,5B;3,5\n", [1.4e9, 70e6]),
  "points between thousands": ("params (M);tokens;loss\n1.400,0;2e9;3,25\n70,5;3e9;3,5\n", [1.4e9, 70.5e6]),
  "by another column, comma": ("params (M);tokens;loss\n1.400;2e9;3,25\n2.800;3e9;3,5\n", [1.4e9, 2.8e9]),
  "by another column, point": ("params (M);tokens;loss\n1.400;2e9;3.25\n2.800;3e9;3.5\n", [1.4e6, 2.8e6]),
  "by a loss of three digits": (
    "params (M)\ttokens\tloss\n1,400\t2e9\t3,214\n7,250\t3e9\t2,998\n", [1.4e6, 7.25e6]),
  "three digits in a CSV": ("params (M),tokens,loss\n1.400,2e9,3.214\n2.800,3e9,2.998\n", [1.4e6, 2.8e6]),
  "unit in header and cell": ("Params (B),tokens,loss\n1.4B,2e9,3.25\n0.07B,3e9,3.5\n", [1.4e9, 70e6]),
  "bare beside a unit, by the header": ("Params (M),tokens,loss\n1.4M,2e9,3.25\n70,3e9,3.5\n", [1.4e6, 70e6]),
  "thin blanks": ("params;tokens;loss\n1\u2009400\u2009000;2e9;3,2\n70\u202f000;3e9;3,5\n", [1.4e6, 7e4]),
  "apostrophes": ("params,tokens,loss\n1'400'000,2e9,3.2\n70\u2019000,3e9,3.5\n", [1.4e6, 7e4]),
  "powers": ("params,tokens,loss\n1.4\u00d710\u2079,2e9,3.2\n$7 \\times 10^{7}$,3e9,3.5\n", [1.4e9, 7e7]),
  "words": ("params,tokens,loss\n1.4 billion,2e9,3.2\n70 Mio.,3e9,3.5\n", [1.4e9, 7e7]),
  "unit words in the header": ("params_millions,tokens,loss\n1.4,2e9,3.2\n70,3e9,3.5\n", [1.4e6, 7e7]),
  "a power in the header": ("params (1e6),tokens,loss\n1.4,2e9,3.2\n70,3e9,3.5\n", [1.4e6, 7e7]),
  "lakhs": ('params,tokens,loss\n"14,00,000",2e9,3.2\n"7,00,000.0",3e9,3.5\n', [1.4e6, 7e5]),
  "spread after the value": (
    "params,tokens,loss\n1.4e6,2e9,3.2 \u00b1 0.1\n7e5,3e9,3.5 +/- 0.1\n", [1.4e6, 7e5]),
}  # fmt: skip


@pytest.mark.parametrize("name", LOCALES)
def test_the_column_as_a_whole_decides_how_its_numbers_are_read(tmp_path, name):
  text, params = LOCALES[name]
  t = laws.read_table(write(tmp_path, text)).need("n_params", "n_tokens", "loss")
  np.testing.assert_allclose(t["n_params"], params)
  assert 2.9 < t["loss"].min() < 3.6


TWO_READINGS = {
  "a comma and a point": ("params;tokens;loss\n1,4B;2e9;3\n1.5B;3e9;3\n", "--decimal comma"),
  "nothing decides": ('params,tokens,loss\n"1,400",2e9,3\n"2,800",3e9,3\n', "may be 1400 or 1.4.*--decimal"),
  "nothing decides, points": ("params;tokens;loss\n1.400;2e9;3\n2.800;3e9;3\n", "--decimal point"),
  "other columns disagree": ('params;tokens;loss;x\n1.400;2e9;3,5;1.25\n2.800;3e9;3,5;1.5\n', "--decimal"),
  "header and cells": ("params (M),tokens,loss\n1.4B,2e9,3\n70M,3e9,3\n", "--unit n_params=1"),
  "bare beside a unit": ("params,tokens,loss\n1.4B,2e9,3\n70,3e9,3\n", "--unit n_params=1"),
}  # fmt: skip


@pytest.mark.parametrize("name", TWO_READINGS)
def test_two_possible_readings_are_refused_in_a_line_that_names_the_flag(tmp_path, name):
  text, words = TWO_READINGS[name]
  with pytest.raises(ValueError, match=words) as error:
    laws.read_table(write(tmp_path, text))
  assert "\n" not in str(error.value)


def test_the_flags_decide_between_two_readings(tmp_path):
  path = write(tmp_path, 'params,tokens,loss\n"1,400",2e9,3\n"2,800",3e9,3\n')
  assert laws.read_table(path, decimal="comma")["n_params"][0] == 1.4
  assert laws.read_table(path, decimal="point")["n_params"][0] == 1400
  path = write(tmp_path, "params (M),tokens,loss\n1.4B,2e9,3\n70,3e9,3\n")
  np.testing.assert_allclose(
    laws.read_table(path, scale={"n_params": 1e6})["n_params"], [1.4e9, 7e7]
  )


# ---- Which loss ----


@pytest.mark.parametrize(
  "header, first, second, taken",
  [
    ("train/loss,eval/val/loss", 2, 3, 3),
    ("eval/val/loss,train/loss", 3, 2, 3),
    ("loss,val_loss", 2, 3, 3),  # Keras: `loss` is of training
    ("train_loss,validation loss", 2, 3, 3),
    ("val/loss,val/loss - MIN", 3, 2, 3),
    ("train/loss - MIN,val/loss - MIN", 2, 3, 3),
    ("loss,eval/val/loss", 3, 3, 3),
    ("loss,smooth loss", 3, 2, 3),
    ("train/loss,train/grad_norm", 3, 2, 3),
    ("eval/c4/loss,eval/c4/loss_std", 3, 2, 3),
    ("valLoss,trainLoss", 3, 2, 3),
    ("eval/val/loss,eval/test/loss", 3, 4, None),
    ("eval/c4/loss,pile_loss", 3, 4, None),
    ("train/loss,train_loss", 3, 4, None),
  ],
)
def test_evaluation_losses_go_before_training_losses(tmp_path, header, first, second, taken):
  path = write(tmp_path, f"params,tokens,{header}\n1e6,2e7,{first},{second}\n2e6,4e7,{first},{second}.5\n"
               if first != second else f"params,tokens,{header}\n1e6,2e7,{first},{second}\n")  # fmt: skip
  t = laws.read_table(path)
  if taken is None:
    with pytest.raises(
      ValueError, match="all look like it; name the one to use with --loss COLUMN"
    ):
      t.need("loss")
  else:
    assert t.need("loss")["loss"][0] == taken


def test_a_training_loss_alone_is_taken_and_said(tmp_path):
  t = laws.read_table(write(tmp_path, "params,tokens,train/loss\n1e6,2e7,3\n"))
  assert t["loss"][0] == 3 and any("'train/loss' is of training" in n for n in t.notes)


# ---- Conditions ----


@pytest.mark.parametrize(
  "where, rows",
  [
    ("set=a OR set=b", [1, 2, 3]),
    ("NOT set=a", [2, 4]),
    ("set=a AND NOT D<5", [3]),
    ("(set=a OR set=b) AND D>=5", [2, 3]),
    ("set=a and D>5 or set=b", [2, 3]),
    ("!(set=a) && D>5", [4]),
    ("set='a' || set=\"c and d\"", [1, 3, 4]),
    ("set=c and d", [4]),
    ("`val/loss - MIN`<3.5 AND set!=b", [1, 4]),
    ("val/loss - MIN>=4", [3]),
    ("D=2K OR D>7", [3, 4]),
    ("set~^[ab]$", [1, 2, 3]),
    ("note=", [2, 4]),
    ("NOT note=ok", [2, 4]),
    ("Params (M)>1 AND Params (M)<9", [2, 3]),
  ],
)
def test_conditions_join_by_and_or_not(tmp_path, where, rows):
  path = write(
    tmp_path,
    "Params (M),D,val/loss - MIN,set,note\n1,2,3,a,ok\n4,5,3.5,b,\n7,8,4,a,ok\n9,9,3,c and d,\n",
  )
  t = laws.read_table(path, where=[where])
  assert list(t.rows) == rows and len(t.skipped) == 4 - len(rows)


@pytest.mark.parametrize(
  "where",
  [
    "set",
    "set=a AND",
    "(set=a",
    "set=a)",
    "set=a OR mood=b",
    "NOT",
    "set~(",
    "",
    "(" * 99,
    "!!!" * 99,
  ],
)
def test_what_is_no_condition_is_one_line(tmp_path, where):
  path = write(tmp_path, "params,tokens,loss,set\n1,2,3,a\n")
  with pytest.raises(ValueError, match="where") as error:
    laws.read_table(path, where=[where])
  assert "\n" not in str(error.value)


# ---- Files as researchers export them ----

ROWS = {"params": [1000000, 2000000], "tokens": [2e7, 4e7], "loss": [3.25, 3.125]}
EXPORTS = {
  "a W&B table": 'Name,State,Created,params,tokens,train/loss - MIN,val/loss - MIN\nrun-1,finished,'
                 '"2024-11-26",1000000,2e7,2.5,3.25\nrun-2,finished,2024-11-27,2000000,4e7,2.25,3.125\n',
  "pandas with its index": ",params,tokens,loss\n0,1000000,2e7,3.25\n1,2000000,4e7,3.125\n",
  "pandas printed": "   params      tokens   loss\n0  1000000  20000000.0  3.250\n"
                    "1  2000000  40000000.0  3.125\n",
  "R's write.table": '"params" "tokens" "loss"\n"1" 1e+06 2e+07 3.25\n"2" 2e+06 4e+07 3.125\n',
  "pandas to_markdown": "|    |   params |   tokens |   loss |\n|---:|-----:|-----:|----:|\n"
                        "|  0 |    1e+06 |    2e+07 |  3.25 |\n|  1 |    2e+06 |    4e+07 |  3.125 |\n",
  "numpy.savetxt": "# params tokens loss\n1.0e+06 2.0e+07 3.25\n2.0e+06 4.0e+07 3.125\n",
  "a LaTeX table": "params & tokens & loss \\\\ \\hline\n$1\\times10^6$ & 20M & \\textbf 3.25 \\\\\n".replace(
    "\\textbf ", "") + "2M & 40M & 3.125 \\\\\n",
  "JSON by column": '{"params": [1000000, 2000000], "tokens": [2e7, 4e7], "loss": [3.25, 3.125]}',
  "pandas to_json": '{"params": {"0": 1000000, "1": 2000000}, "tokens": {"0": 2e7, "1": 4e7}, '
                    '"loss": {"0": 3.25, "1": 3.125}}',
  "pandas split": '{"columns": ["params", "tokens", "loss"], "index": [0, 1], "data": [[1000000, 2e7, 3.25], '
                  "[2000000, 4e7, 3.125]]}",
  "nested JSONL": '{"model": {"params": 1000000}, "tokens": 2e7, "eval": {"val": {"loss": 3.25}}, '
                  '"train": {"loss": 2}}\n'
                  '{"model": {"params": 2000000}, "tokens": 4e7, "eval": {"val": {"loss": 3.125}}, '
                  '"train": {"loss": 1}}\n',
  "CR line ends": "params,tokens,loss\r1e6,2e7,3.25\r2e6,4e7,3.125\r",
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPORTS)
def test_exports_of_other_tools_are_read(tmp_path, kind):
  t = laws.read_table(write(tmp_path, EXPORTS[kind])).need("n_params", "n_tokens", "loss")
  for ours, theirs in (("n_params", "params"), ("n_tokens", "tokens"), ("loss", "loss")):
    np.testing.assert_allclose(t[ours], ROWS[theirs])


def test_parquet_is_read_and_a_missing_reader_is_one_line(tmp_path, monkeypatch):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  path = tmp_path / "runs.parquet"
  parquet.write_table(pa.table(ROWS), path)
  np.testing.assert_allclose(laws.read_table(path)["loss"], ROWS["loss"])
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(ValueError, match="broken parquet"):
    laws.read_table(path)
  monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
  with pytest.raises(ValueError, match="pip install pyarrow, or export the table as CSV"):
    laws.read_table(path)


def test_runs_that_have_not_finished_are_said(tmp_path):
  path = write(
    tmp_path, "Name,State,params,tokens,loss\na,finished,1e6,2e7,3\nb,crashed,2e6,4e7,3\n"
  )
  assert any("1 row of runs that have not finished" in n for n in laws.read_table(path).notes)


@pytest.mark.parametrize(
  "text, words",
  [
    ('{"loss": 3, "loss": 4, "params": 1}\n', "'loss' occurs twice"),
    ("1e6,2e7,3.25\n2e6,4e7,3.125\n", "first line holds numbers"),
    ("[" * 100000, "not JSON"),
    ("[]", "no run"),
    ('{"a": 1}\n{"a": ', "not JSON"),
  ],
)
def test_a_file_that_is_no_table_is_one_line(tmp_path, text, words):
  with pytest.raises(ValueError, match=words) as error:
    laws.read_table(write(tmp_path, text))
  assert "\n" not in str(error.value)


def test_zero_flops_over_zero_parameters_are_a_named_row_and_no_warning(tmp_path):
  path = write(tmp_path, "params,flops,loss\n0.0,0.0,3\n1e6,6e13,3\n")
  t = laws.read_table(path).with_flops().need("n_params", "n_tokens", "loss")
  assert list(t.rows) == [2] and t.skipped[0][0] == 1


N_PARAMS, N_TOKENS = [7e7, 1.6e8, 1.4e9], [3e9, 1e10, 5e10]


def test_what_no_float_holds_is_missing(tmp_path):
  """A number that its unit takes beyond 1.8e308, and products of columns that go beyond it."""
  head, rows = "params,tokens,loss,C (EFLOPs)", "10,200,2,1.79e300\n10,200,2,1e-14\n"
  table = laws.read_table(write(tmp_path, f"{head}\n{rows}"))
  assert np.isnan(table["flops"][0]) and table["flops"][1] == pytest.approx(1e4)
  huge = "params,tokens,loss,flops\n1e300,2e300,2,1e291\n1e6,2e7,2,1.7e308\n"
  with pytest.raises(ValueError, match=r"flops \('flops'\): is 1.4e\+294 x 6 N D; .*--unit flops="):
    laws.read_table(write(tmp_path, huge)).need("n_params", "n_tokens", "loss")


def columns_table(tmp_path, n, d, c, head="params,tokens,compute,loss"):
  rows = [f"{a:.6g},{b:.6g},{f:.6g},3" for a, b, f in zip(n, d, c, strict=True)]
  return write(tmp_path, "\n".join([head, *rows]) + "\n")


@pytest.mark.parametrize("of, factor, said", [
  ("n", 1e9, r"n_params \('params'\): values from 0.07 to 1.4 are too small.*--unit n_params=1e9,"),
  ("n", 1e6, r"n_params \('params'\): values from 70 to 1.4e\+03 are too small"),
  ("d", 1e9, r"n_tokens \('tokens'\): values from 3 to 50 are too small.*--unit n_tokens=1"),
  ("c", 8.64e19, r"flops \('compute'\): values from 0.0146 to 4.86 are too small.*=8.64e19"),
  ("c", 1e12, r"flops \('compute'\): is 1e-12 x 6 N D \(TFLOPs\?\); .*--unit flops=1e\+12, or"),
  ("one", 1e9, r"n_params \('params'\): 0.07 in row 1 is too small to be a count beside 1.4e\+09"),
])  # fmt: skip
def test_a_unit_that_nobody_says_is_asked_for(tmp_path, of, factor, said):
  n, d = np.array(N_PARAMS), np.array(N_TOKENS)
  c = 6 * n * d
  shown = {"n": n, "d": d, "c": c} | (
    {of: {"n": n, "d": d, "c": c}[of] / factor} if of in "ndc" else {}
  )
  if of == "one":
    shown["n"] = np.array([n[0] / factor, *n[1:]])
  path = columns_table(tmp_path, *shown.values())
  with pytest.raises(ValueError, match=said):
    laws.read_table(path).need("n_params", "n_tokens", "loss")
  if of == "one":
    return
  name = {"n": "n_params", "d": "n_tokens", "c": "flops"}[of]
  told = laws.read_table(path, scale={name: factor}).need("n_params", "n_tokens", "loss")
  np.testing.assert_allclose(told["flops"], c, rtol=1e-4)
  laws.read_table(path, scale={name: 1.0}).need(name)  # believed
  kept = laws.read_table(path)  # what does not need it does not ask
  assert len(kept.need("loss")) == 3
