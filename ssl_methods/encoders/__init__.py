"""Encoders: how they are built, what comes out of them, and weights that they start from."""
