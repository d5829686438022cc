"""Reconstruction methods."""
