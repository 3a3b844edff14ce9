"""The data doctor: finds what is wrong with labelled conformations before a model is trained on them.

One file per question; ``scan`` gathers what they judge by in one pass.
"""

from forcewell.doctor.examination import check, check_path, check_paths, glance
from forcewell.doctor.findings import Finding, Report
from forcewell.doctor.labels import label_findings

__all__ = ["Finding", "Report", "check", "check_path", "check_paths", "glance", "label_findings"]
