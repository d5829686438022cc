"""The server's Flower app: thin. Hands the round loop a way to the sites."""

import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from federation.flower import (
    content_to_reply,
    content_to_site,
    failure_in,
    instruction_to_content,
    tensors_to_arrays,
)
from federation.records import Failure, SiteInfo, TrainInstruction, TrainReply
from federation.study import load_study
from foundation.errors import RunError, StudyError
from foundation.files import save_tensors
from server.initial import initial_weights
from server.rounds import RoundLoop

app = ServerApp()
_POLL_S = 0.2


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study named in the run's configuration to its end; leave ``global.safetensors`` in its folder."""
    folder, study = (
        Path(str(context.run_config["folder"])),
        load_study(Path(str(context.run_config["study"]))),
    )
    contact = GridContact(grid, int(context.run_config["sites"]))
    weights = RoundLoop(study, folder, contact, initial_weights(study, folder)).run()
    save_tensors(folder / "global.safetensors", weights)


class GridContact:
    """The sites behind a Flower grid, by name."""

    def __init__(self, grid: Grid, expected: int) -> None:
        self._grid, self._expected = grid, expected
        self._nodes: dict[str, int] = {}
        self._open: dict[str, tuple[str, int]] = {}

    def sites(self) -> list[SiteInfo]:
        """Wait for the expected number of nodes, ask each who it is."""
        while len(nodes := list(self._grid.get_node_ids())) < self._expected:
            time.sleep(_POLL_S)
        infos = []
        messages = [Message(RecordDict(), node, "query") for node in sorted(nodes)]
        for reply in self._grid.send_and_receive(messages):
            if reply.has_error():
                raise RunError("a site could not be asked who it is; see that site's log, then --resume")
            failure = failure_in(reply.content)
            if failure is not None:
                site = content_to_reply(reply.content).site
                raise StudyError(f"site {site}: cannot take part ({failure}); its own log (state/site.log) says why")
            info = content_to_site(reply.content)
            self._nodes[info.site] = reply.metadata.src_node_id
            infos.append(info)
        return infos

    def instruct(self, instruction: TrainInstruction, sites: Sequence[str]) -> None:
        """Send the instruction; the weights are encoded once for all sites."""
        arrays = tensors_to_arrays(instruction.weights)
        messages = [
            Message(
                instruction_to_content(instruction, arrays),
                self._nodes[site],
                "train",
                group_id=str(instruction.round),
            )
            for site in sites
        ]
        for site, message_id in zip(sites, self._grid.push_messages(messages), strict=True):
            self._open[message_id] = (site, instruction.round)

    def collect(self) -> list[TrainReply | Failure]:
        """Pull what has come. A node that is offline, or a reply that cannot be read, becomes a ``Failure``."""
        replies = list(self._grid.pull_messages(list(self._open)))
        if not replies:
            time.sleep(_POLL_S)
        return [self._read(reply) for reply in replies if reply.metadata.reply_to_message_id in self._open]

    def _read(self, reply: Message) -> TrainReply | Failure:
        # An error reply's source is the SuperLink, so the site is found by the message it answers.
        site, round_ = self._open.pop(reply.metadata.reply_to_message_id)
        if reply.has_error():
            return Failure("", round_, site, "offline")
        try:
            answer = content_to_reply(reply.content)
        except RunError:
            return Failure("", round_, site, "unreadable reply")
        if answer.site != site:
            return Failure("", round_, site, "reply under another site's name")
        return answer
