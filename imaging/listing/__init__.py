"""Manifests: which file shows which patient, splits, partners."""
