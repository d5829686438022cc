"""Predictive methods."""
