"""Certificates, kits, key sources, signatures."""
