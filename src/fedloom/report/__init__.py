"""Reports from run folders: tables, charts and one HTML page. Reads what a run wrote; imports no torch."""

from fedloom.report.findings import run_findings
from fedloom.report.run_page import write_report
from fedloom.report.run_results import Run, read_run
from fedloom.report.score_tables import score_table
from fedloom.report.tables import Table
from fedloom.report.terminal_summary import terminal_table

__all__ = ["Run", "Table", "read_run", "run_findings", "score_table", "terminal_table", "write_report"]
