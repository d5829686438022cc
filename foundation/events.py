"""Names of the events in a federation's ``metrics.jsonl``, which the server writes and the report reads."""

LEFT_OUT = "site left out"
COLLAPSING = "collapsing"
