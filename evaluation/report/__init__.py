"""The report: one HTML file, and the tables, plots and sentences in it."""
