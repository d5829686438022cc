"""Encoder and labelled images -> results table -> report. Knows nothing of federation."""
