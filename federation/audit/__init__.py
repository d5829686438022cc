"""Audit logs: rows, hash chain, checks, reports."""
