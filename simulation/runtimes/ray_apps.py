"""The apps for Ray's processes, which print all messages: what they print is the engine's log."""

from client.app import app as client
from foundation.messages import print_messages
from server.app import app as server

print_messages()

__all__ = ["client", "server"]
