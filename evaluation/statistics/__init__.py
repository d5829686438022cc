"""Intervals, adjustments, diagnostics, and the schema of the results table."""
