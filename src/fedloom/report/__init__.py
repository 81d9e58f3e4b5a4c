"""Reports from run folders: tables, charts and one HTML page. Reads what a run wrote; imports no torch."""

from fedloom.report.page import write_report
from fedloom.report.prose import finding
from fedloom.report.records import Run, read_run
from fedloom.report.scores import score_table, terminal_table
from fedloom.report.tables import Table

__all__ = ["Run", "Table", "finding", "read_run", "score_table", "terminal_table", "write_report"]
