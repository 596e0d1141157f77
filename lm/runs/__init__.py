"""Run directories: written while training, read afterwards.

>>> from lm import runs
>>> runs.load("runs/default").generate(["Returns the "])  # doctest: +SKIP
"""

from lm.runs.load import LoadedRun, load

__all__ = ["LoadedRun", "load"]
