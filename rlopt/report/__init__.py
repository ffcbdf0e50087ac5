"""From many run folders to one page: read, group, estimate, draw (scripts/report.py)."""
