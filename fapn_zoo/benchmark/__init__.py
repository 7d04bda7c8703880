"""Speed, memory and size of models, measured side by side."""

from fapn_zoo.benchmark.report import append_csv, csv_text, parse_size, render
from fapn_zoo.benchmark.run import REALTIME, benchmark

__all__ = ["REALTIME", "append_csv", "benchmark", "csv_text", "parse_size", "render"]
