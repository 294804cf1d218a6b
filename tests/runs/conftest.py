"""The micro runs of tests/micro_runs.py."""

from tests.micro_runs import micro_trainer, rows, weights_of, whole_run

__all__ = ["micro_trainer", "rows", "weights_of", "whole_run"]
