"""Encoder and labelled pictures -> results table -> report. Knows nothing of federation."""
