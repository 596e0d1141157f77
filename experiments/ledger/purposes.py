"""What a fitted law is for: serving, device time, dollars, task accuracy, as `experiments fit` asks."""

from collections.abc import Mapping

from experiments import laws
from experiments.laws import allocation, chain, serving
from experiments.ledger import fits
from lm.config.errors import ConfigError

CHAINED = (
  "n_boot",
  "seed",
  "confidence",
  "objective",
  "delta",
  "points",
  "n_starts",
  "cluster",
  "force",
)


def check(options, names: Mapping[str, str]) -> dict[str, str]:
  """Names of columns with those of --speed and --serve_speed.

  Raises:
    ConfigError: words of serving without --serve_tokens, or words that --then and serving do not share.
  """
  if options.then and not options.csv:
    raise ConfigError(
      f"then={options.then}: needs --csv; of runs, write one with experiments status NAME --export runs.csv"
    )
  if options.serve_tokens is None:
    for name in ("target_loss", "speed", "serve_speed", "dollars_per_hour"):
      if getattr(options, name) is not None:
        raise ConfigError(
          f"{name}={getattr(options, name)}: needs --serve_tokens N; 0 = training alone"
        )
    return dict(names)
  other = next((k for k in ("then", "mixture", "curves") if getattr(options, k)), None)
  if other:
    raise ConfigError(
      f"serve_tokens={options.serve_tokens:g}: says nothing of --{other}; leave one out"
    )
  for name in ("serve_speed", "dollars_per_hour"):
    if getattr(options, name) is not None and options.speed is None:
      raise ConfigError(
        f"{name}={getattr(options, name)}: needs --speed COLUMN, tokens a second in training; add it"
      )
  speeds = {k: getattr(options, k) for k in ("speed", "serve_speed") if getattr(options, k)}
  return {**names, **speeds}


def serve(options, found, asked: Mapping) -> dict[str, object]:
  """{"serving": the best runs for training and serving} where --serve_tokens is given, else {}."""
  if options.serve_tokens is None:
    return {}
  if not isinstance(found, laws.LawFit):
    raise ConfigError("serve_tokens: needs a law of size and tokens; use --law chinchilla")
  price = None
  if options.speed is not None:
    serve_speed = None if options.serve_speed is None else found.table["serve_speed"]
    price = serving.price_of_speed(
      found.table["n_params"], found.table["speed"], serve_speed, options.dollars_per_hour
    )
  losses = [fits.positive("target_loss", t) for t in (options.target_loss or "").split(",") if t]
  costs = list(asked.get("flops", ()))
  if not costs and not losses and price is None:
    costs = list(allocation.default_budgets(found.table["flops"]))
  return {
    "serving": serving.allocate(found, options.serve_tokens, price, costs=costs, losses=losses)
  }


def chained(options, table: laws.Table, law: str, settings: Mapping) -> dict[str, object]:
  """Loss from `law`, then a task's score from the loss by --then; beside it the direct law of accuracy.

  Raises:
    ConfigError: settings that two laws in a chain do not take, or columns that the table lacks.
  """
  second = laws.LAWS.get(options.then)
  if second is None or second.inputs != ("loss",):
    known = ", ".join(n for n, form in laws.LAWS.items() if form.inputs == ("loss",))
    raise ConfigError(f"then={options.then}: must be a law of a score in the loss: {known}")
  ignored = [k for k in settings if k not in CHAINED]
  if ignored:
    raise ConfigError(
      f"{ignored[0]}: laws in a chain do not take it; they take {', '.join(CHAINED)}"
    )
  given = {k: settings[k] for k in CHAINED if k in settings}
  try:
    found: dict[str, object] = {"chain": chain.chain_fit(table, law, second, **given)}
    if second.target == "accuracy" and {"n_params", "n_tokens"} <= set(table.columns):
      same = {k: v for k, v in given.items() if k not in ("objective", "delta")}
      found["direct"] = laws.fit_table(table, "direct", objective="l2", **same)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(" ".join(str(error).splitlines())) from error
  return found
