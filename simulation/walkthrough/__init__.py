"""Pretend hospitals for the walk-through."""
