"""A site's long-running programs: the client, Flower's SuperNode, and the worker that runs no shipped code."""
