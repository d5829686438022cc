"""The server: round loop, spool and checkpoint (plain Python over files), and a thin Flower app."""
