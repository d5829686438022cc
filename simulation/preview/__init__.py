"""A sheet of what a method makes of real images."""
