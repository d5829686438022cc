"""What encoders see in a few images: attention, components, similarity, restorations."""
