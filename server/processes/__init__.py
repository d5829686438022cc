"""The server's long-running programs: SuperLink, nginx and the round loop."""
