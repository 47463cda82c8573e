"""The report as a PDF to hand over: A4, fonts embedded, Japanese too, the same bytes every time."""

from securefed.reports.pdf.render import render

__all__ = ["render"]
