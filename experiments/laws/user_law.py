"""A law written as a formula, "E + A*N^-a + B*D^-b*exp(-k*S)": parsed, never run as code.

Python's parser gives the tree; only numbers, names, + - * / ^, and exp, log, sqrt, tanh, min, max of it
are taken. Sums of positive terms are computed as log-sum-exp, so that no scale overflows; derivatives
are JAX's, exact.

Letters stand for columns: N n_params, D n_tokens, C flops, S steps, U unique_tokens, M tokens per
parameter, L loss (in `error = ...`); so do names of ours and those the caller declares. Every other name
is a parameter: positive, if it is a scale; of either sign inside an exponent, a function, or as a factor
of what may be negative.
"""

import ast
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.laws import forms
from experiments.laws.columns import ALIASES

LETTERS = {
  "N": "n_params",
  "D": "n_tokens",
  "C": "flops",
  "S": "steps",
  "U": "unique_tokens",
  "L": "loss",
}
FUNCTIONS = ("exp", "log", "sqrt", "tanh", "min", "max")
MAX_LENGTH, MAX_PARAMS, MAX_DEPTH = 400, 16, 40
EXAMPLE = "for example 'E + A*N^-a + B*D^-b*exp(-k*S)'"
CANDIDATES, STARTS = 6000, 384  # starts drawn, and kept by their misfit
EXPONENTS = (0.03, 0.08, 0.15, 0.3, 0.5, 0.8, 1.3)


def is_formula(text: str) -> bool:
  """Whether a --law is a formula and not the name of a law."""
  return any(c in text for c in "+-*/^()= ")


@functools.lru_cache(maxsize=64)
def parse(text: str, declared: tuple[str, ...] = ()) -> forms.Law:
  """The law of a formula.

  Args:
    text: the right side, or `loss = ...` or `error = ...` (then the target itself is predicted).
    declared: names of columns beside the letters and our own.

  Raises:
    ValueError: outside the grammar, or without a parameter or a column.
  """
  fail = functools.partial(_fail, text)
  left, equals, right = text.partition("=")
  target = {"": "loss", "L": "loss", "loss": "loss", "error": "error"}.get(
    left.strip() if equals else ""
  )
  if target is None or "=" in right:
    fail(
      f"{left.strip()!r} cannot be predicted; begin with loss = or error =, or with the right side"
    )
  body = right if equals else text
  if len(body) > MAX_LENGTH:
    fail(f"longer than {MAX_LENGTH} characters")
  for old, new in (("^", "**"), ("\u2212", "-"), ("\u00b7", "*"), ("\u00d7", "*")):
    body = body.replace(old, new)
  try:
    tree = ast.parse(body.strip(), mode="eval").body
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    fail("not a formula (an operator, a name or a bracket is missing)")
  names, depth = _names(tree, fail)
  if depth > MAX_DEPTH:
    fail("nested too deeply")
  known = {**{n: n for n in ALIASES}, **LETTERS, **{n: n for n in declared}}
  used = {n: known[n] for n in names if n in known}
  inputs = tuple(
    dict.fromkeys([*used.values(), *(("n_params", "n_tokens") if "M" in names else ())])
  )
  params = [n for n in names if n not in known and n != "M"]
  if target in inputs:
    fail(f"{target} stands on both sides; error = ... may use L")
  if not params or not inputs:
    fail("it has no column" if params else "it has no parameter")
  if len(params) > MAX_PARAMS:
    fail(f"{len(params)} parameters, more than {MAX_PARAMS}")
  free = _signed(tree, set(params), known)
  built = tuple(
    forms.Param(
      n, n not in free, "of the formula, any sign" if n in free else "of the formula, > 0"
    )
    for n in params
  )
  link = "log" if target == "loss" else "linear"
  formula = _Formula(tree, built, known, link == "log")
  predict = formula.log if link == "log" else formula.value
  return forms.Law(
    f"{target} = {' '.join((right if equals else text).split())}",
    f"{'L' if target == 'loss' else 'error'} = {' '.join((right if equals else text).split())}",
    built, inputs, predict, formula.starts, "a formula of the user's", target=target, link=link,
  )  # fmt: skip


def register(text: str, declared: Sequence[str] = ()) -> str:
  """Parses a formula and puts it among experiments.laws.LAWS; its name there."""
  law = parse(text, tuple(declared))
  forms.LAWS[law.name] = law
  return law.name


def letters_of(law: forms.Law) -> str:
  """`S stands for steps`: what the letters of a law's columns mean."""
  said = [f"{letter} is {name}" for letter, name in LETTERS.items() if name in law.inputs]
  return ", ".join(said)


def _fail(text: str, why: str):
  shown = text if len(text) <= 80 else f"{text[:77]}..."
  raise ValueError(f"law={shown}: {why}; {EXAMPLE}".replace("\n", " "))


def _names(tree: ast.AST, fail: Callable) -> tuple[list[str], int]:
  """(names in order of appearance, depth); fails on what is not of the grammar."""
  names, deepest = {}, 0
  stack = [(tree, 1)]
  while stack:
    node, depth = stack.pop()
    deepest = max(deepest, depth)
    match node:
      case ast.Constant(value=int() | float() as v) if not isinstance(v, bool):
        if not abs(v) < 1e300:
          fail("a number is too large")
        children = []
      case ast.Name(id=name):
        names[name] = None
        children = []
      case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Pow()):
        children = [node.left, node.right]
      case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
        children = [node.operand]
      case ast.Call(func=ast.Name(id=f), keywords=[]) if f in FUNCTIONS:
        children = node.args
        if len(children) != (2 if f in ("min", "max") else 1):
          fail(f"{f} takes {'two values' if f in ('min', 'max') else 'one value'}")
      case ast.Call(func=ast.Name(id=f)):
        fail(f"{f!r} is no function here; there are {', '.join(FUNCTIONS)}")
      case _:
        fail(
          f"{ast.unparse(node)[:40]!r} is not allowed; numbers, names, + - * / ^ and functions are"
        )
    stack += [(child, depth + 1) for child in reversed(children)]
  return list(names), deepest


def _signed(tree, params: set[str], known) -> set[str]:
  """Parameters that may have either sign."""
  free: set[str] = set()

  def walk(node, inside: bool):
    """`inside` an exponent or a function's argument, or beside a factor that may be negative."""
    match node:
      case ast.Name(id=name) if name in params and inside:
        free.add(name)
      case ast.BinOp(op=ast.Pow()):
        walk(node.left, inside)
        walk(node.right, True)
      case ast.BinOp(op=ast.Mult() | ast.Div()):
        walk(node.left, inside or not _positive(node.right))
        walk(node.right, inside or not _positive(node.left))
      case ast.BinOp():
        walk(node.left, inside)
        walk(node.right, inside)
      case ast.UnaryOp():
        walk(node.operand, inside)
      case ast.Call(func=ast.Name(id=f)):
        for arg in node.args:
          walk(arg, inside or f in ("exp", "tanh"))

  walk(tree, False)
  return free


def _positive(node) -> bool:
  """Whether a node is positive when every name is."""
  match node:
    case ast.Constant(value=v):
      return v > 0
    case ast.Name() | ast.Call(func=ast.Name(id="exp")):
      return True
    case ast.Call(func=ast.Name(id="log")):
      return False
    case ast.Call(args=args):
      return all(map(_positive, args))
    case ast.BinOp(op=ast.Sub()) | ast.UnaryOp(op=ast.USub()):
      return False
    case ast.BinOp(op=ast.Pow()):
      return _positive(node.left)
    case ast.BinOp():
      return _positive(node.left) and _positive(node.right)
    case ast.UnaryOp():
      return _positive(node.operand)
  return False


@dataclasses.dataclass(frozen=True, eq=False)
class _Formula:
  """A parsed formula as functions of (theta [P, 1, R], columns [n, 1])."""

  tree: ast.AST
  params: tuple[forms.Param, ...]
  known: dict[str, str]
  predicts_log: bool

  def value(self, theta, x):
    return self._value(self.tree, theta, x)

  def log(self, theta, x):
    return self._log(self.tree, theta, x)

  def _param(self, name):
    return next((i for i, p in enumerate(self.params) if p.name == name), None)

  def _column(self, name, x):
    return x["n_tokens"] / x["n_params"] if name == "M" else x[self.known[name]]

  def _is_positive(self, node) -> bool:
    """Whether a node is positive whatever the parameters' values."""
    match node:
      case ast.Name(id=name):
        i = self._param(name)
        return i is None or self.params[i].log
      case ast.BinOp(op=ast.Pow()):
        return self._is_positive(node.left)
      case ast.BinOp(op=ast.Add() | ast.Mult() | ast.Div()):
        return self._is_positive(node.left) and self._is_positive(node.right)
      case ast.UnaryOp(op=ast.UAdd()):
        return self._is_positive(node.operand)
      case ast.Call(func=ast.Name(id="exp")):
        return True
      case ast.Call(func=ast.Name(id="log" | "tanh")):
        return False
      case ast.Call(args=args):
        return all(map(self._is_positive, args))
    return isinstance(node, ast.Constant) and node.value > 0

  def _log(self, node, theta, x):
    """log of a node; of one that may be negative by its value, nan where it is."""
    go = lambda n: self._log(n, theta, x)
    if not self._is_positive(node):
      return jnp.log(self._value(node, theta, x))
    match node:
      case ast.Constant(value=v):
        return jnp.log(float(v))
      case ast.Name(id=name):
        i = self._param(name)
        return jnp.log(self._column(name, x)) if i is None else theta[i]
      case ast.UnaryOp():
        return go(node.operand)
      case ast.BinOp(op=ast.Add()):
        return forms.log_sum_exp(*map(go, _terms(node)))
      case ast.BinOp(op=ast.Mult()):
        return go(node.left) + go(node.right)
      case ast.BinOp(op=ast.Div()):
        return go(node.left) - go(node.right)
      case ast.BinOp(op=ast.Pow()):
        return self._value(node.right, theta, x) * go(node.left)
      case ast.Call(func=ast.Name(id=f), args=args):
        if f == "exp":
          return self._value(args[0], theta, x)
        if f == "sqrt":
          return 0.5 * go(args[0])
        return {"min": jnp.minimum, "max": jnp.maximum}[f](go(args[0]), go(args[1]))
    raise AssertionError(ast.dump(node))

  def _value(self, node, theta, x):
    go = lambda n: self._value(n, theta, x)
    match node:
      case ast.Constant(value=v):
        return float(v)
      case ast.Name(id=name):
        i = self._param(name)
        if i is None:
          return self._column(name, x)
        return jnp.exp(theta[i]) if self.params[i].log else theta[i]
      case ast.UnaryOp(op=op):
        return -go(node.operand) if isinstance(op, ast.USub) else go(node.operand)
      case ast.BinOp(op=ast.Add()):
        return go(node.left) + go(node.right)
      case ast.BinOp(op=ast.Sub()):
        return go(node.left) - go(node.right)
      case ast.BinOp(op=ast.Mult() | ast.Div() | ast.Pow()) if self._is_positive(node):
        return jnp.exp(self._log(node, theta, x))
      case ast.BinOp(op=ast.Mult()):
        return go(node.left) * go(node.right)
      case ast.BinOp(op=ast.Div()):
        return go(node.left) / go(node.right)
      case ast.BinOp(op=ast.Pow()):
        if isinstance(node.right, ast.Constant) and float(node.right.value).is_integer():
          return jnp.asarray(go(node.left)) ** int(node.right.value)
        return jnp.power(go(node.left), go(node.right))
      case ast.Call(func=ast.Name(id="exp"), args=[one]):
        return jnp.exp(go(one))
      case ast.Call(func=ast.Name(id="log"), args=[one]):
        return self._log(one, theta, x)
      case ast.Call(func=ast.Name(id="sqrt" | "tanh" as f), args=[one]):
        return {"sqrt": jnp.sqrt, "tanh": jnp.tanh}[f](go(one))
      case ast.Call(func=ast.Name(id=f), args=[one, two]):
        return {"min": jnp.minimum, "max": jnp.maximum}[f](go(one), go(two))
    raise AssertionError(ast.dump(node))

  # ---- Starts ----

  def starts(self, x, y_n):
    """Working coordinates [S, P]: draws that give each term a share of the target, the best by misfit.

    Exponents come from EXPONENTS, rates from one over their column, and the scale of each term of the
    sum is then set so that the term has its drawn share at the centre of the runs.
    """
    rng = np.random.default_rng(0)
    target = np.exp(y_n) if self.predicts_log else y_n
    theta = np.stack([self._draw(p, x, rng) for p in self.params], axis=1)
    shares = rng.dirichlet(np.ones(len(_terms(self.tree))), CANDIDATES)
    with jax.enable_x64(True):
      columns = {k: jnp.asarray(v, jnp.float64)[:, None] for k, v in x.items()}
      for k, term in enumerate(_terms(self.tree)):
        scale = self._scale_of(term)
        if scale is not None:
          logs = np.asarray(self._log(term, jnp.asarray(theta.T)[:, None, :], columns))
          centre = np.median(np.broadcast_to(logs, (len(y_n), CANDIDATES)), axis=0)
          sign = -1.0 if scale[1] else 1.0
          wanted = np.log(np.maximum(shares[:, k], 1e-6) * np.median(np.abs(target)))
          move = np.where(np.isfinite(centre), wanted - centre, 0.0)
          theta[:, scale[0]] += sign * move
      read = self.log if self.predicts_log else self.value
      fitted = np.asarray(read(jnp.asarray(theta.T)[:, None, :], columns))
    misfit = np.abs(
      np.broadcast_to(fitted, (len(y_n), CANDIDATES)) - np.asarray(y_n)[:, None]
    ).mean(0)
    order = np.argsort(np.where(np.isfinite(misfit), misfit, np.inf), kind="stable")
    best, others = (
      order[: STARTS // 2],
      rng.permutation(order[STARTS // 2 : 8 * STARTS])[: STARTS // 2],
    )
    return theta[np.concatenate([best, others])]

  def _draw(self, param: forms.Param, x, rng) -> np.ndarray:
    """[CANDIDATES] draws of one parameter in working coordinates."""
    beside = [c for c in self._columns_beside(param.name) if c in x]
    if param.log:  # against a column in one bracket it is of the column's size, else of order one
      middle = [np.log(np.median(x[c])) for c in beside] or [0.0]
      return rng.choice(middle, CANDIDATES) + rng.normal(0, 3, CANDIDATES)
    size = rng.choice(EXPONENTS, CANDIDATES) * np.exp(rng.normal(0, 0.3, CANDIDATES))
    size = size * rng.choice([1.0, 1.0, 1.0, -1.0], CANDIDATES)
    rates = [1 / np.median(x[c]) for c in self._rate_columns(param.name) if c in x]
    return size * (rng.choice(rates, CANDIDATES) * 3 if rates else 1.0)

  def _columns_beside(self, name: str) -> list[str]:
    """Columns that a positive parameter shares a power or a sum in brackets with."""
    found = []
    for node in ast.walk(self.tree):
      base = node.left if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) else None
      if base is not None and not isinstance(base, ast.Name):
        inner = {n.id for n in ast.walk(base) if isinstance(n, ast.Name)}
        if name in inner:
          found += [self.known[n] for n in inner if n in self.known]
    return found

  def _rate_columns(self, name: str) -> list[str]:
    """Columns that a parameter multiplies as they are (k*S), so that its size is one over theirs."""
    found = []
    for node in ast.walk(self.tree):
      if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        factors = _factors(node)
        if any(isinstance(f, ast.Name) and f.id == name for f in factors):
          found += [
            self.known[f.id] for f in factors if isinstance(f, ast.Name) and f.id in self.known
          ]
    return found

  def _scale_of(self, term) -> tuple[int, bool] | None:
    """(parameter that scales a term, whether it divides) or None: a positive factor of the whole term."""
    if not self._is_positive(term):
      return None
    for factor, divides in _factors_of(term):
      if isinstance(factor, ast.Name):
        i = self._param(factor.id)
        if i is not None and self.params[i].log:
          return i, divides
    return None


def _terms(node) -> list:
  """The terms of a sum, signs dropped."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
    return _terms(node.left) + _terms(node.right)
  return _terms(node.operand) if isinstance(node, ast.UnaryOp) else [node]


def _factors(node) -> list:
  return [factor for factor, _ in _factors_of(node)]


def _factors_of(node, divides: bool = False) -> list:
  """[(factor, whether it divides)] of a product."""
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
    other = divides != isinstance(node.op, ast.Div)
    return _factors_of(node.left, divides) + _factors_of(node.right, other)
  if isinstance(node, ast.UnaryOp):
    return _factors_of(node.operand, divides)
  return [(node, divides)]
