"""Which pretext task for which pictures and question: published evidence, our own measurements, and a pilot."""
