"""What an experiment is, which settings it tries, what it will cost."""

from experiments.sweep.sweep import Experiment, Member, Run

__all__ = ["Experiment", "Member", "Run"]
