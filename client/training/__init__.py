"""Local pretraining of a study's rounds at a site, and what of it survives on the site's disk."""
