"""Does a change survive scale: recipes on one ladder of budgets, and what each is worth in compute."""

from experiments.race.judge import Race, judge
from experiments.race.recipes import Recipe, runs

__all__ = ["Race", "Recipe", "judge", "runs"]
