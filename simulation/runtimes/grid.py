"""A Flower grid inside this process: hands each pushed message to the ClientApp object and keeps the reply."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from federation.flower.private_identity import assume_identity, set_message_id

_SERVER_NODE = 1


class InProcessGrid(Grid):
    """No Ray, no server, no open port. Sites train one after another, each with the study's threads.

    A pushed message is run when it is first asked for, so that a reply is stored before the next site starts. Messages
    need no copy: arrays travel as bytes, and a site decodes them into memory of its own.
    """

    def __init__(
        self, client_app: ClientApp, node_configs: Sequence[Mapping[str, str]], run_config: Mapping[str, Any]
    ) -> None:
        assume_identity(_SERVER_NODE)
        self._app = client_app
        self._contexts = {
            number: Context(1, number, dict(config), RecordDict(), dict(run_config))
            for number, config in enumerate(node_configs, start=_SERVER_NODE + 1)
        }
        self._waiting: dict[str, Message] = {}
        self._pushed = 0

    def set_run(self, run: Any) -> None:
        """Part of Flower's interface; this grid has one run."""

    @property
    def run(self) -> Any:
        """Part of Flower's interface; only its own strategies ask for it, and none runs here."""
        raise RuntimeError("the in-process grid has no Flower run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A new message from the server's node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All nodes; they never go offline."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages and give them ids."""
        ids = []
        for message in messages:
            self._pushed += 1
            message_id = f"message-{self._pushed}"
            set_message_id(message, message_id)
            self._waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the first of these messages that has not run yet; its reply, or [] when none is left."""
        for message_id in message_ids:
            message = self._waiting.pop(message_id, None)
            if message is not None:
                return [self._app(message, self._contexts[message.metadata.dst_node_id])]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, run all within ``timeout`` seconds, and return the replies."""
        ids, replies = self.push_messages(messages), []
        started = time.monotonic()
        for message_id in ids:
            if timeout is None or time.monotonic() - started < timeout:
                replies += self.pull_messages([message_id])
        return replies
