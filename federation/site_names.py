"""What a site may call itself."""

SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$"
"""The server makes file names of it, so it checks too."""
