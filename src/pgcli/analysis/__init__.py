"""Statistics and comparisons of runs, read from their directories only. No torch."""

from pgcli.analysis.comparison import compare
from pgcli.analysis.results import Comparison

__all__ = ["Comparison", "compare"]
