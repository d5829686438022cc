"""Flower's records to ours and back; the only place that knows Flower's private parts."""
