"""Which pretext task for which images and question: published evidence, our own measurements, and a pilot."""
