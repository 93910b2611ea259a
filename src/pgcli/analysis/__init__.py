"""Reads run directories, and nothing else, and says what they show. No torch."""

from pgcli.analysis.comparison import compare
from pgcli.analysis.results import Comparison

__all__ = ["Comparison", "compare"]
