"""Runs that build on one another, from one command: a list of stages, each a run directory, and a report at the end."""

from pgcli.pipelines.driver import Pipeline, pipeline

__all__ = ["Pipeline", "pipeline"]
