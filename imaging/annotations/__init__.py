"""Masks and boxes in the frame that an encoder sees."""
