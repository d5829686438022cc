"""Benchmarks of privacy by patient."""
