"""Scaling laws fitted with intervals, usable alone on any table of runs.

found = laws.fit("runs.csv", "chinchilla")  # a path, a DataFrame or columns; found.to_dict() for JSON
print(found.summary())
found.plot()  # an altair chart
"""

from experiments.laws.chain import ChainFit, chain_fit
from experiments.laws.conventions import SideBySide, refit_under, side_by_side, standard
from experiments.laws.design import PlannedRun, check_design, propose_design
from experiments.laws.envelope import envelope_fit
from experiments.laws.forms import LAWS
from experiments.laws.further_forms import FURTHER
from experiments.laws.given import Comparison, GivenLaw, compare, evaluate
from experiments.laws.hyper import hyper_fit, lr_sensitivity
from experiments.laws.isoflop import IsoFlopFit, isoflop_fit, power_law_of_optima
from experiments.laws.lawfit import fit, fit_table
from experiments.laws.optima import optima_fit
from experiments.laws.result import Estimate, LawFit, Outliers
from experiments.laws.table import ALIASES, Table, from_columns, read_table
from experiments.laws.user_law import parse as parse_law
from experiments.laws.varpro import varpro_fit, varpro_table

__all__ = [
  "ALIASES",
  "FURTHER",
  "LAWS",
  "ChainFit",
  "Comparison",
  "Estimate",
  "GivenLaw",
  "IsoFlopFit",
  "LawFit",
  "Outliers",
  "PlannedRun",
  "SideBySide",
  "Table",
  "chain_fit",
  "check_design",
  "compare",
  "envelope_fit",
  "evaluate",
  "fit",
  "fit_table",
  "from_columns",
  "hyper_fit",
  "isoflop_fit",
  "lr_sensitivity",
  "optima_fit",
  "parse_law",
  "power_law_of_optima",
  "propose_design",
  "read_table",
  "refit_under",
  "side_by_side",
  "standard",
  "varpro_fit",
  "varpro_table",
]
