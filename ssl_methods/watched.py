"""What the collapse watch calls its numbers (ssl_methods/diagnostics.py), for those who list them without torch."""

FEATURE_SPREAD, OUTPUT_SPREAD, OUTPUT_RANK = "feature_spread", "output_spread", "output_rank"
