"""Reports: the privacy report of an auditor, and what all reports have in common."""
