"""Evaluation where labels stay at the sites: probe, histogram and figures from sums."""
