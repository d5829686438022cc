"""Names of what a federation records of itself, which the server writes and evaluation reads."""

LEFT_OUT = "site left out"
COLLAPSING = "collapsing"
STATISTICS = "statistics estimated"

DIVERGENCE = "divergence"
DIVERGENCE_NAME = "divergence.jsonl"
"""A row a round and site, beside ``metrics.jsonl``, which is for a person: ``server.monitoring.divergence``."""

SNAPSHOTS = "snapshots"
"""Folder of the federated encoder after some of the rounds, ``round-00001.safetensors``."""
