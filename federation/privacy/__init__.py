"""What a study promises about patients and sites, what that costs, and the books that are kept of it."""
