"""Methods that join several pretext tasks."""
