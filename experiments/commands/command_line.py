"""The command line of `python -m experiments`: every command, its options and a runnable example."""

import argparse
import functools
from collections.abc import Callable

from experiments.commands import commands, racing, running, status, wandb_commands
from experiments.launch.backends import BACKENDS, words_help
from experiments.laws.curves import METHODS
from lm.config.command_line import Parser


def make_parser(description: str) -> Parser:
  """The parser of every command; `command_parsers` holds each one's own."""
  parser = Parser(prog="python -m experiments", description=description)
  actions = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
  parser.command_parsers = actions.choices
  for name, (act, about, example, options) in COMMANDS.items():
    end = [*([words_help()] if _workers in options else []), f"example:\n  {example}"]
    command = actions.add_parser(name, help=about, description=f"{about}.", epilog="\n\n".join(end))
    for option in options:
      option(command)
    command.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    command.set_defaults(act=act)
  return parser


# ---- Options -------------------------------------------------------------------------------------


def _which(command: Parser) -> None:
  command.add_argument("name", nargs="?", help="a file experiments/NAME.py, or an earlier sweep")
  command.add_argument("--scale", help="a size of the experiment, where it has several")
  command.add_argument("--root", default="runs", help="folder of all experiments (default runs)")
  command.add_argument(
    "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key in every run"
  )
  command.add_argument("--config", help="no file: sweep over this config, FILE[:ARGUMENT]")
  command.add_argument(
    "--grid", action="append", default=[], metavar="KEY=A,B", help="every value; grids multiply"
  )
  command.add_argument(
    "--random", nargs="+", default=[], metavar=("N", "KEY=RANGE"),
    help="N draws; a RANGE is log:LOW..HIGH, lin:LOW..HIGH, int:LOW..HIGH or choice:A,B",
  )  # fmt: skip
  command.add_argument(
    "--dirichlet", nargs="+", default=[], metavar=("N", "data.weights=K"),
    help="N mixtures of K data sources, or around shares: data.weights=0.5,0.3,0.2; see fit --mixture",
  )  # fmt: skip
  command.add_argument(
    "--halving",
    metavar="ETA:RUNGS",
    help="successive halving (ASHA): the best 1/ETA go on, RUNGS budgets a factor ETA apart",
  )
  command.add_argument("--seed", type=int, default=0, help="of the random draws")
  command.add_argument("--save_as", metavar="NAME", help="name of a sweep without a file")
  command.add_argument(
    "--only",
    action="append",
    default=[],
    metavar="RUN",
    help="these runs and no others, not halved",
  )


def _branch(command: Parser) -> None:
  command.add_argument(
    "--branch", action="store_true",
    help="runs that differ in their budget alone share a trunk: each goes on from where the decay of "
    "the next shorter one began",
  )  # fmt: skip


def _rows(command: Parser) -> None:
  command.add_argument("--ledger", help="an exported ledger (.jsonl) instead of run directories")
  command.add_argument(
    "--where", action="append", default=[], metavar="COND",
    help="filter: KEY=VALUE, also < > ~ !=, AND, OR, NOT and brackets",
  )  # fmt: skip


def _workers(command: Parser) -> None:
  command.add_argument(
    "--on", default="local", metavar="BACKEND",
    help="; ".join(f"{name}: {row.about}" for name, row in BACKENDS.items()),
  )  # fmt: skip
  command.add_argument(
    "--with", action="append", default=[], metavar="KEY=VALUE", dest="with_",
    help="an option of the back end; all are listed below",
  )  # fmt: skip
  command.add_argument("--workers", type=int, help="processes at a time (default: as many as fit)")
  command.add_argument("--stack", type=int, default=8, help="at most so many runs in one stack")


def _plan(command: Parser) -> None:
  _speed(command, "auto")
  command.add_argument("--design", type=float, metavar="FLOPS", help="propose a grid for a budget")


def _speed(command: Parser, probe: str) -> None:
  command.add_argument("--chip", help="plan: for a chip of lm/devices/chips.py, for example v5e")
  command.add_argument(
    "--mfu", type=float, help="its utilisation, exact convention (default: that of published runs)"
  )
  command.add_argument(
    "--probe", default=probe, choices=("auto", "again", "never"),
    help=f"plan: measure this machine's speed: where it is not known | anew | never (default {probe})",
  )  # fmt: skip


def _or_none(kind: Callable) -> Callable:
  """The type of an option that takes None, too."""
  read = lambda text: None if text == "None" else kind(text)
  read.__name__ = kind.__name__  # argparse names it
  return read


def _run(command: Parser) -> None:
  command.add_argument(
    "--dry_run", action="store_true", help="print what would be started or created, and its price"
  )
  command.add_argument(
    "--detach",
    action="store_true",
    help="return when jobs are queued (engines); status follows them",
  )
  command.add_argument(
    "--optuna", nargs="+", default=[], metavar=("N", "KEY=RANGE"),
    help="Bayesian search: N trials that Optuna proposes, in ranges as of --random",
  )  # fmt: skip
  command.add_argument("--retry", action="store_true", help="start failed runs once more")
  command.add_argument("--force", action="store_true", help="run a design that plan refuses")
  command.add_argument(
    "--wandb", action="store_true", help="log runs and report to W&B, as a group"
  )


def _race(command: Parser) -> None:
  command.add_argument(
    "recipes", nargs="*", metavar="RECIPE",
    help="'NAME: FILE[:ARGUMENT] KEY=VALUE ...', the baseline first; or one name: a race saved earlier",
  )  # fmt: skip
  command.add_argument(
    "--budgets",
    metavar="KEY=A,B",
    help="the ladder: train.flops=1e11,3e11,1e12, or train.seconds=10,20,40",
  )
  command.add_argument(
    "--rung", action="append", default=[], metavar="WORDS",
    help="the ladder, a budget at a time: 'model.width=64 train.flops=1e11'",
  )  # fmt: skip
  command.add_argument(
    "--seeds", type=int,
    help="runs of each recipe at each budget (default 3; of a race saved earlier, what it has)",
  )  # fmt: skip
  command.add_argument("--save_as", metavar="NAME", help="name of the race (default race)")
  command.add_argument("--root", default="runs", help="folder of all experiments (default runs)")
  command.add_argument("--ledger", help="judge an exported ledger (.jsonl); nothing is trained")
  command.add_argument("--plan", action="store_true", help="what it will cost and can show; no run")
  command.add_argument("--see", type=float, metavar="NATS", help="refuse what cannot show this")
  command.add_argument("--noise_from", metavar="LEDGER", help="runs or ledger to take it from")
  judged = functools.partial(command.add_argument, default=argparse.SUPPRESS)
  judged("--noise", type=_or_none(float), metavar="NATS",
         help="standard deviation of seeds; kept, as the next five, until None undoes it")  # fmt: skip
  judged("--baseline", type=_or_none(str), metavar="NAME",
         help="recipe to compare with (default first)")  # fmt: skip
  judged("--at", type=_or_none(str), metavar="FLOPS,..", help="other budgets to predict m at")
  judged("--pin", type=_or_none(float), metavar="E", help="irreducible loss, if it is known")
  judged("--flops", type=_or_none(str), metavar="COLUMN",
         help="column of compute (default flops), as flops_exact")  # fmt: skip
  judged("--target", type=_or_none(float), metavar="LOSS", help="test whether means are below")
  _speed(command, "never")
  command.add_argument("--retry", action="store_true", help="start failed runs once more")
  command.add_argument("--force", action="store_true", help="run what the plan refuses")


def _status(command: Parser) -> None:
  command.add_argument(
    "--on", metavar="BACKEND", help="ask this engine in the cloud about its jobs"
  )
  command.add_argument("--columns", help="keys to show, with commas between")
  command.add_argument("--sort", metavar="KEY", help="smallest first")
  command.add_argument("--reverse", action="store_true", help="--sort largest first")
  command.add_argument("--group_by", metavar="KEYS", help="mean, std and best of the done runs")
  command.add_argument("--value", metavar="KEY",
                       help="what --group_by averages (default: what runs are judged by)")  # fmt: skip
  command.add_argument(
    "--noise", action="store_true", help="the noise of seeds, pooled over settings"
  )
  command.add_argument("--export", metavar="FILE", help="write .jsonl, .csv or .parquet")


def _wandb(command: Parser) -> None:
  command.add_argument(
    "--method", default="names", choices=("names", "grid", "random", "bayes"),
    help="names: a trial is a run of the experiment; else trials are of its hyperparameters",
  )  # fmt: skip


def _agent(command: Parser) -> None:
  command.add_argument(
    "args", nargs="*", metavar="KEY=VALUE", help="after --: parameters of the trial"
  )


def _table(command: Parser) -> None:
  """Options of anybody's table and of the law fitted to it, for `fit` and `report`."""
  many = functools.partial(command.add_argument, action="append", default=[])
  command.add_argument("--csv", metavar="FILE",
                       help="a table (CSV, TSV, Markdown, JSONL, parquet; - = stdin)")  # fmt: skip
  command.add_argument(
    "--law", help="chinchilla (default), kaplan_nd, kaplan_ns, saturating, overtraining, "
    "data_constrained, overfitting, precision, vocabulary, granularity, joint_experts, leverage, "
    "distillation, direct, direct_compute, downstream, sigmoid; "
    "isoflop, envelope, varpro, hyper, optima; or a formula: "
    "'E + A*N^-a + B*D^-b*exp(-k*S)'",
  )  # fmt: skip
  for name in ("params", "tokens", "loss", "flops"):
    command.add_argument(f"--{name}", metavar="COLUMN", help=f"column of {name}")
  many("--column", metavar="OURS=THEIRS", help="any other: unique_tokens=U, steps=S, error=err")
  many("--unit", metavar="COLUMN=FACTOR",
       help="of numbers that carry no unit themselves: params=M, flops=1e9")  # fmt: skip
  command.add_argument(
    "--decimal",
    choices=("point", "comma"),
    help="the decimal mark, where the columns do not show it",
  )
  command.add_argument("--se", metavar="COLUMN", help="standard errors of the loss: weights 1/se^2")
  command.add_argument("--weight", metavar="COLUMN", help="weights of the runs")
  command.add_argument(
    "--best", action="store_true", help="of runs of one (N, D) the lowest loss (a tuned sweep)"
  )
  command.add_argument(
    "--drop_repeats", action="store_true", help="leave out rows that repeat one cell for cell"
  )
  command.add_argument(
    "--force", action="store_true", help="fit what is refused for its data, saying so"
  )
  many("--count", metavar="NAME:params=COLUMN,flops=COLUMN",
       help="refit under this way to count, beside those the table shows; 6ND = 6 N D")  # fmt: skip
  command.add_argument(
    "--drop_highest", type=int, metavar="N", help="leave out the N highest losses"
  )
  command.add_argument(
    "--drop_beyond", type=float, metavar="MADS", help="leave out residuals beyond so many MADs"
  )
  command.add_argument("--min_flops", type=float, help="leave out runs below")
  command.add_argument("--objective", choices=("huber", "lad", "l2"), help="default huber")
  command.add_argument(
    "--residual", choices=("log", "linear"), help="of log loss (default) or loss"
  )
  command.add_argument("--delta", type=float, help="Huber's threshold (default 1e-3)")
  many("--fix", metavar="NAME=VALUE", help="hold a parameter of the law")
  many("--tie", metavar="NAME=NAME", help="parameters that share one value: alpha=beta")
  command.add_argument("--n_boot", type=int, default=1000, help="bootstrap samples; 0 = none")
  command.add_argument("--intervals", metavar="A,B", help="of case, bca, noise, delta, profile")
  command.add_argument("--starts", type=int, metavar="N", help="only so many of the law's starts")
  command.add_argument("--confidence", type=float, help="of intervals (default 0.95)")
  command.add_argument("--at", metavar="FLOPS,..", help="budgets whose optimum is wanted")
  many(
    "--point", metavar="COLUMN=X,..", help="a run whose loss is wanted: n_params=7e9,n_tokens=1e12"
  )
  command.add_argument("--holdout", type=float, metavar="FLOPS", help="hold out the runs above")
  command.add_argument("--cluster", metavar="COLUMN", help="rows to resample together")
  command.add_argument("--method", choices=METHODS, help="of a slice's minimum (default parabola)")
  command.add_argument(
    "--budget", metavar="COLUMN", help="isoflop: names the slice (default: FLOPs)"
  )
  command.add_argument("--within", type=float, help="isoflop: sizes within this factor of the best")
  command.add_argument("--unweighted", action="store_true", help="isoflop: all optima weigh alike")


def _fit(command: Parser) -> None:
  command.add_argument("--curves", nargs="+", metavar="RUN",
                       help="fit whole loss curves: CSV files of step,lr,loss, or run directories; "
                       "--law multi_power (default) or tissue")  # fmt: skip
  command.add_argument("--predict", nargs="+", default=[], metavar="RUN",
                       help="further curves that the law of --curves is to predict; with --mixture, "
                       "tables of mixtures that the law has not seen")  # fmt: skip
  many = functools.partial(command.add_argument, action="append", default=[])
  command.add_argument(
    "--serve_tokens",
    type=float,
    metavar="N",
    help="best size and tokens where so many tokens are served, too: at totals --at, or ...",
  )
  command.add_argument("--target_loss", metavar="L,..", help="... at these losses, for least cost")
  command.add_argument(
    "--speed",
    metavar="COLUMN",
    help="tokens a second of a device in training: costs are device-seconds, not FLOPs",
  )
  command.add_argument(
    "--serve_speed",
    metavar="COLUMN",
    help="the same in serving (default: three times that of training)",
  )
  command.add_argument(
    "--dollars_per_hour", type=float, metavar="X", help="of a device: costs are dollars"
  )
  command.add_argument("--then", metavar="LAW",
                       help="a task's score from the loss that --law predicts: sigmoid (accuracy) or "
                       "downstream (error); --column accuracy=THEIRS, --point for predictions")  # fmt: skip
  many("--mixture", metavar="COLUMNS",
       help="losses as a law of the weights of data domains, and the best mixture: columns of weights as "
       "names or patterns ('train_*'), --loss likewise; of an experiment's runs 'data.weights/*'; --law "
       "mixing (default), log_linear, linear or trees")  # fmt: skip
  many("--join", metavar="FILE", help="--mixture: a table whose rows go beside those of --csv")
  many("--cap", metavar="DOMAIN=X", help="--mixture: the best gives the domain no larger weight")
  command.add_argument("--run", metavar="COLUMN", help="envelope: names the run of a point")
  command.add_argument("--of", metavar="COLUMN", help="hyper: the swept column, as lr")
  command.add_argument("--on", metavar="A,B", help="hyper: the law's columns (n_params,n_tokens)")
  command.add_argument("--init_loss", type=float, help="hyper: loss at initialisation: sensitivity")
  command.add_argument(
    "--near_optimal",
    type=float,
    metavar="X",
    help="hyper: only losses within this share of the best",
  )
  command.add_argument("--sd", metavar="COLUMN", help="optima: standard deviation of log N*")


def _report(command: Parser) -> None:
  command.add_argument("--out", help="page to write (default ROOT/NAME/report.html)")
  command.add_argument(
    "--wandb", nargs="?", const=True, metavar="ENTITY/PROJECT",
    help="of the finished runs of a W&B project; alone: log the report of an experiment there",
  )  # fmt: skip
  command.add_argument("--style", metavar="STYLE", help="a paper kit, too: neurips, icml or talk")
  command.add_argument(
    "--wandb_offline", metavar="FOLDER", help="of offline W&B runs instead of --csv"
  )


def _compare(command: Parser) -> None:
  command.add_argument("runs", nargs="+", metavar="RUN", help="run directories, paths or URLs")
  command.add_argument("--x", default="tokens", help="step | tokens | flops | seconds")
  command.add_argument(
    "--smooth",
    type=float,
    default=0.0,
    help="of training curves: width in decades of x (default 0: none)",
  )
  command.add_argument("--out", help="also write the curves as a page (.html)")


def _show(command: Parser) -> None:
  command.add_argument("run", metavar="RUN", help="run directory, path or URL")


def _board(command: Parser) -> None:
  command.add_argument("--root", default="runs", help="folder of runs, or a ledger (path or URL)")
  command.add_argument("--out", default="board.html", help="page to write")
  command.add_argument(
    "--serve",
    type=int,
    nargs="?",
    const=8000,
    metavar="PORT",
    help="serve it on this machine instead, refreshing (default port 8000; 0: any free one)",
  )


# ---- Commands ----

ME = "python -m experiments"
SWEEP = "--config configs/smoke.py --grid optim.peak_lr=3e-3,1e-2 --save_as rates"
RACE = "--rung train.steps=40 --rung train.steps=80 --rung train.steps=160 --seeds 2 --plan"
LEDGER = "--ledger experiments/results/lr_sweep/ledger.jsonl"
# name: (function, what it does, an example that runs in a fresh clone, options)
COMMANDS: dict[str, tuple[Callable, str, str, tuple[Callable, ...]]] = {
  "list": (commands.list_, "The experiments there are", f"{ME} list", ()),
  "plan": (running.plan, "What an experiment will cost, and whether it can answer its question",
           f"{ME} plan lr_sweep --chip v5e --mfu 0.4", (_which, _workers, _branch, _plan)),
  "run": (running.run, "Train what is missing; Ctrl-C leaves all resumable",
          f"{ME} run {SWEEP}", (_which, _workers, _branch, _run)),
  "status": (status.status, "The ledger of an experiment's runs: filter, group, export",
             f"{ME} status lr_sweep {LEDGER} --group_by model.width",
             (_which, _rows, _status)),
  "fit": (commands.fit, "Fit an experiment's laws, or a law to any table",
          f"{ME} fit lr_sweep {LEDGER}", (_which, _rows, _table, _fit)),
  "report": (commands.report, "Write an experiment's report as one HTML page",
             f"{ME} report lr_sweep {LEDGER} --out report.html", (_which, _rows, _report, _table)),
  "race": (racing.race, "Does a change survive scale: recipes on one ladder, in each other's compute",
           f"{ME} race 'adamw:' 'muon: optim.name=muon' {RACE}", (_race, _workers)),
  "compare": (commands.compare, "Set runs side by side: configs, curves, final numbers",
              f"{ME} run {SWEEP}\n  {ME} compare runs/rates --x tokens", (_compare,)),
  "show": (commands.show, "Everything known about one run",
           f"python train.py --config configs/smoke.py --workdir runs/one\n  {ME} show runs/one",
           (_show,)),
  "board": (commands.board, "One HTML page over all runs",
            f"{ME} board --root experiments/results/isoflop_wide/ledger.jsonl --out board.html",
            (_board,)),
  "wandb-sweep": (wandb_commands.wandb_sweep, "A W&B sweep (YAML) over an experiment's hyperparameters",
                  f"{ME} wandb-sweep lr_sweep > sweep.yaml", (_which, _wandb)),
  "agent": (wandb_commands.agent, "Train the run that a W&B agent's parameters stand for",
            f"{ME} agent lr_sweep -- --only=standard,width=32,lr=0.002,seed=0", (_which, _agent)),
}  # fmt: skip
