"""The report: one self-contained HTML page that says what was changed, what it gained and what it cost."""

from lighten.report.page import render as render
from lighten.report.page import write_report as write_report

__all__ = ["render", "write_report"]
