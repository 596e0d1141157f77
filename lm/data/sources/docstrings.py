"""The default corpus: docstrings of numpy and scipy, read from their sources, not by importing.

requirements.txt pins both packages exactly, and the wheels of one version carry the same sources on
every platform but for what SKIPPED names and for line ends, which parsing unifies. So every machine
gets the same documents in the same order.
"""

import ast
import importlib.util
import pathlib
import warnings
from collections.abc import Iterator

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig
from lm.data.sources.digest import digest
from lm.data.sources.readers.fields import Fields, Record

PACKAGES = ("numpy", "scipy")
# Tests are not prose; numpy.distutils exists before Python 3.12 only; builds write the rest.
SKIPPED = {"tests", "distutils", "__config__.py", "__config__.pyi", "version.py", "version.pyi"}


def documents(name: str, cfg: DataConfig, split: str, where: str) -> Iterator[str]:
  return read(where)


def records(name: str, cfg: DataConfig, fields: Fields, where: str) -> Iterator[Record]:
  """Of each docstring its text, the package that it is of, and how many lines it has."""
  for inside, text in _read(where):
    found = {"text": text, "package": inside.split("/")[0], "lines": text.count("\n") + 1}
    yield fields.pick(found, inside, where)


def identity(name: str, cfg: DataConfig, split: str, where: str) -> str:
  """The content of every file that is read."""
  return digest(path.read_bytes() for _, path in source_files(where))


def source_files(where: str) -> list[tuple[str, pathlib.Path]]:
  """(path inside site-packages with forward slashes, file) of every source, in order of the former.

  Raises: ConfigError if a package is not installed; `where` starts the message.
  """
  files = []
  for package in PACKAGES:
    spec = importlib.util.find_spec(package)  # of a top-level package: finds it, imports nothing
    if spec is None or spec.origin is None:
      raise ConfigError(f"{where}: needs {package}; run pip install -r requirements.txt")
    root = pathlib.Path(spec.origin).parent
    for path in root.rglob("*.py*"):
      inside = path.relative_to(root.parent)
      if path.suffix in (".py", ".pyi") and SKIPPED.isdisjoint(inside.parts):
        files.append((inside.as_posix(), path))
  return sorted(files)


def read(where: str) -> Iterator[str]:
  """Docstrings of modules, classes, functions, and of what C defines, in source order.

  The latter are in Python sources too, as last arguments of add_newdoc and the like.
  """
  return (text for _, text in _read(where))


def _read(where: str) -> Iterator[tuple[str, str]]:
  """(path inside site-packages, docstring)."""
  for inside, path in source_files(where):
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # old escapes in other people's strings
      tree = ast.parse(path.read_bytes())
    found = [(node.lineno, node.col_offset, node.value) for node in _doc_nodes(tree)]
    for *_, text in sorted(found):
      text = dedent(text)
      if text:
        yield inside, text


def _doc_nodes(tree: ast.Module) -> Iterator[ast.Constant]:
  documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  for node in ast.walk(tree):
    if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr):
      value = node.body[0].value
    elif isinstance(node, ast.Call) and node.args and "doc" in _name(node.func):
      value = node.args[-1]  # add_newdoc(place, name, doc) or (place, name, (attribute, doc))
      if isinstance(value, ast.Tuple) and value.elts:
        value = value.elts[-1]
    else:
      continue
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
      yield value


def _name(node: ast.expr) -> str:
  return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def dedent(doc: str) -> str:
  """`doc` without its common indentation and outer blank lines.

  inspect.cleandoc changed between Python versions; the bytes of the corpus must not.
  """
  first, *rest = doc.expandtabs().split("\n")
  margin = min((len(line) - len(line.lstrip(" ")) for line in rest if line.strip(" ")), default=0)
  lines = [first.lstrip(" "), *(line[margin:] for line in rest)]
  return "\n".join(line.rstrip(" ") for line in lines).strip("\n")
