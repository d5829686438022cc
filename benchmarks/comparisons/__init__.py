"""Comparisons of methods and encoders."""
