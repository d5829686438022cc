"""Keys, kits and the registry of sites."""
