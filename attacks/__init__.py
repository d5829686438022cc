"""Attacks on a simulated run, as measurements: what can be learned of patients from what leaves the sites."""
