"""The list of what may leave a site."""
