"""Non-contrastive methods."""
