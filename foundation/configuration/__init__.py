"""Sections of YAML files: models, overrides, and errors in one line."""
