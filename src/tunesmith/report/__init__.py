"""What every stage returns: a `Report` of findings, figures, tables, series and samples.

`Report` itself is plain data; `report.terminal` and `report.html` show it.
"""

from tunesmith.report.report import Figure, Finding, Report, Sample, Series, Severity, Table

__all__ = ["Figure", "Finding", "Report", "Sample", "Series", "Severity", "Table"]
