"""Benchmarks of intervals."""
