"""Looking at a site's images one by one: what they are, and what is wrong with them."""
