"""The server: round loop, reply store and checkpoint (plain Python over files), and a thin Flower app."""
