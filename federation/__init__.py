"""What both sides of a federation agree on: the study, what may travel, and the algorithms with both their halves."""
