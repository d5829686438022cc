"""Sums of updates that show no single one: pairwise masks, self-masks, shares (Bonawitz et al. 2017)."""
