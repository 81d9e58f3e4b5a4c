"""Reports from run folders: tables, charts and one HTML page. Reads what a run wrote; imports no torch."""

from fedloom.report.findings import finding
from fedloom.report.html_page import write_report
from fedloom.report.run_results import Run, read_run
from fedloom.report.score_tables import score_table, terminal_table
from fedloom.report.tables import Table

__all__ = ["Run", "Table", "finding", "read_run", "score_table", "terminal_table", "write_report"]
