"""Scores of a model on a data set: the way of `predict` over every image, exact counts, one report.

doors.py has the two doors; measure.py is the loop behind both. state.py says how a run goes on; report.py writes it
down. What is counted is the task's (`fapn_zoo.tasks`).
"""

from __future__ import annotations

from fapn_zoo.data.classes import match_classes
from fapn_zoo.evaluate.doors import compare, evaluate, render_comparison
from fapn_zoo.evaluate.measure import Stopped
from fapn_zoo.evaluate.report import CSV_COLUMNS, render, write_report

__all__ = [
    "CSV_COLUMNS",
    "Stopped",
    "compare",
    "evaluate",
    "match_classes",
    "render",
    "render_comparison",
    "write_report",
]
