"""Protocols: what is done with an encoder and labelled images to predict held-out ones, and baselines without one."""
