"""Runs as rows: `ledger.read("runs").done().to_pandas()`."""

from experiments.ledger.ledger import Ledger
from experiments.ledger.ledger import read_ledger as read

__all__ = ["Ledger", "read"]
