"""Benchmarks of secure aggregation."""
