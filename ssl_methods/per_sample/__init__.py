"""Exact gradients per image, and which methods and encoders have them."""
