"""What a federation records of itself: JSON lines and TensorBoard, consistent with the last checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from foundation import events
from foundation.files import append_jsonl, read_jsonl, write_text
from server.monitoring.divergence import LayerDivergence
from ssl_methods.diagnostics import collapsing


class Journal:
    """``metrics.jsonl``, ``divergence.jsonl`` and TensorBoard curves of one federation.

    Rows of rounds after the checkpoint that a server resumes from are dropped first: those rounds are done again.
    """

    def __init__(self, folder: Path, after_round: int) -> None:
        self._path, self._layers = folder / "metrics.jsonl", folder / events.DIVERGENCE_NAME
        self._boards, self._after = folder / "tensorboard", after_round
        self._status_writer: Any = None
        rows = _kept(self._path, after_round)
        _kept(self._layers, after_round)
        self._watched: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            self._track(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status_writer is not None:
            self._status_writer.close()

    def metrics(self, round_: int, site: str, images: int | None, values: dict[str, float]) -> None:
        """One row a site and round; ``images`` None: that is not told."""
        counted = {} if images is None else {"images": images}
        row = {"round": round_, "site": site, **counted, **values}
        append_jsonl(self._path, row)
        self._track(row)
        if self._status_writer is None:
            # Imported here: it takes a second, and reading a journal does not need it.
            from torch.utils.tensorboard import SummaryWriter

            self._status_writer = SummaryWriter(str(self._boards), purge_step=self._after + 1)
        for name, value in values.items():
            self._status_writer.add_scalar(f"{name}/{site}", value, round_)

    def event(self, round_: int, event: str, site: str | None, reason: str) -> None:
        """One row for what a person has to know: a site left out, a round retried."""
        append_jsonl(self._path, {"round": round_, "event": event, "site": site, "reason": reason})

    def divergence(self, round_: int, site: str, layers: Sequence[LayerDivergence]) -> None:
        """One row a site and round: how its update of each layer stands to the others'."""
        rows = [asdict(layer) for layer in layers]
        append_jsonl(self._layers, {"round": round_, "event": events.DIVERGENCE, "site": site, "layers": rows})

    def is_collapsing(self, site: str) -> bool:
        """Whether the features of ``site`` are coming to be all alike, by its rows so far."""
        return collapsing(self._watched.get(site, []))

    def _track(self, row: dict[str, Any]) -> None:
        if "event" not in row:
            self._watched.setdefault(row["site"], []).append(row)


def _kept(path: Path, after_round: int) -> list[dict[str, Any]]:
    """The rows that stay in the file."""
    rows = [row for row in read_jsonl(path) if row["round"] <= after_round]
    if path.exists():
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows
