"""Run directories. Reading one needs no torch; `pgcli.runs.writer` and `pgcli.runs.checkpoint` do."""

from pgcli.runs.reader import Run, find_run, list_runs

__all__ = ["Run", "find_run", "list_runs"]
