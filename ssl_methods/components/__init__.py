"""What several methods share: heads, momentum encoders, masks, crops, losses."""
