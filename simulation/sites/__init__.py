"""A dataset divided into hospitals, and their folders."""
