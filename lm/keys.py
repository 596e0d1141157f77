"""Prints every config key: its value, type, rule, and the unit and reason that its config file gives.

examples:
  python -m lm.keys
  python -m lm.keys optim model.heads
  python -m lm.keys --config configs/llama.py:1b model --json
"""

from lm.config import interrupts

if __name__ == "__main__":
  interrupts.listen()

import argparse
import ast
import io
import json
import pathlib
import re
import tokenize
import types
import typing
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lm.config import read
from lm.config.command_line import Parser, reject_unknown, run_main
from lm.config.errors import ConfigError, suggest
from lm.config.schema import ABSENT, SECTIONS, KeyRule, flatten, rules_of
from lm.setup.load import load_config

DEFAULT = pathlib.Path(__file__).parent.parent / "configs/default.py"


def reasons(text: str) -> dict[str, str]:
  """{"optim.peak_lr": the comment on the line that sets it} of a config file's text.

  >>> reasons("config.seed = 0  # integer; draws parameters")
  {'seed': 'integer; draws parameters'}
  """
  comments = {
    token.start[0]: token.string.lstrip("# ").strip()
    for token in tokenize.generate_tokens(io.StringIO(text).readline)
    if token.type == tokenize.COMMENT
  }
  sections, found = {"config": ""}, {}
  for node in ast.walk(ast.parse(text)):
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
      continue
    owner, key = node.targets[0].value, node.targets[0].attr
    if len(node.targets) == 2 and isinstance(node.targets[1], ast.Name):
      sections[node.targets[1].id] = f"{key}."  # config.data = data = ConfigDict()
    elif isinstance(owner, ast.Name) and owner.id in sections:
      lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
      found[sections[owner.id] + key] = " ".join(comments.get(line, "") for line in lines).strip()
  return found


def describe(spec: str) -> list[dict[str, Any]]:
  """A row {key, value, type, rule, about, stacks, identity, neutral} for every key of a config."""
  cfg = load_config(spec)
  path = pathlib.Path(spec.partition(":")[0])
  about = reasons(DEFAULT.read_text(encoding="utf-8"))
  about |= {k: why for k, why in reasons(path.read_text(encoding="utf-8")).items() if why}
  kinds = read.field_types({name: type(getattr(cfg, name)) for name in SECTIONS})
  known, rows = rules_of(cfg), []
  for key, value in flatten(cfg).items():
    rule = known[key]
    rows.append({
      "key": key,
      "value": value,
      "type": _type_name(kinds[key]),
      "rule": _rule(rule),
      "about": about.get(key, ""),
      "stacks": rule.varies,
      "identity": rule.identity,
      **({} if rule.neutral is ABSENT else {"neutral": rule.neutral}),
    })  # fmt: skip
  return rows


def main(argv: Sequence[str]) -> int:
  parser = Parser(prog="python -m lm.keys", description=__doc__)
  parser.add_argument("keys", nargs="*", help="keys, or sections such as optim; all if none")
  parser.add_argument("--config", default=str(DEFAULT), help="FILE[:ARGUMENT]")
  parser.add_argument("--json", action="store_true", help="rows as JSON")
  options, unknown = parser.parse_known_args(argv)
  reject_unknown(parser, unknown)
  rows = _chosen(describe(options.config), options)
  if options.json:
    print(json.dumps(rows, indent=2))
    return 0
  table = Table(box=None, pad_edge=False)
  for heading in ("key", "value", "rule", "what it is"):
    table.add_column(heading, overflow="fold")
  for row in rows:
    words = [row["type"], row["rule"]]
    table.add_row(row["key"], str(row["value"]), "; ".join(w for w in words if w), row["about"])
  Console(highlight=False, markup=False).print(table)
  return 0


def _chosen(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
  names = [row["key"] for row in rows]
  for asked in options.keys:
    if not any(name == asked or name.startswith(f"{asked}.") for name in names):
      raise ConfigError(f"keys={asked}: no such key or section; {suggest(asked, names)}")
  inside = lambda key: any(key == k or key.startswith(f"{k}.") for k in options.keys)
  return [row for row in rows if not options.keys or inside(row["key"])]


def _type_name(kind: Any) -> str:
  """`int`, `float or None`, `list of str`."""
  if isinstance(kind, types.UnionType):
    return " or ".join(_type_name(k) for k in typing.get_args(kind)).replace("NoneType", "None")
  if typing.get_origin(kind) is tuple:
    return f"list of {_type_name(typing.get_args(kind)[0])}"
  return kind.__name__


def _rule(rule: KeyRule) -> str:
  if rule.choices:
    return " | ".join(rule.choices)
  return f"in {re.sub('inf', 'infinity', rule.within)}" if rule.within else ""


if __name__ == "__main__":
  run_main(main)
