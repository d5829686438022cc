"""What a federation records of itself: JSON lines and TensorBoard, consistent with the last checkpoint."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from foundation.files import append_jsonl, read_jsonl, write_text
from ssl_methods.diagnostics import collapsing


class Journal:
    """``metrics.jsonl`` and TensorBoard curves of one federation.

    Rows of rounds after the checkpoint that a server resumes from are dropped first: those rounds are done again.
    """

    def __init__(self, folder: Path, after_round: int) -> None:
        self._path = folder / "metrics.jsonl"
        self._boards, self._after = folder / "tensorboard", after_round
        self._board: Any = None
        rows = [row for row in read_jsonl(self._path) if row["round"] <= after_round]
        if self._path.exists():
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self._watched: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            self._watch(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def metrics(self, round_: int, site: str, pictures: int, values: dict[str, float]) -> None:
        """One row a site and round."""
        row = {"round": round_, "site": site, "pictures": pictures, **values}
        append_jsonl(self._path, row)
        self._watch(row)
        if self._board is None:
            # Imported here: it takes a second, and reading a journal does not need it.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._boards), purge_step=self._after + 1)
        for name, value in values.items():
            self._board.add_scalar(f"{name}/{site}", value, round_)

    def event(self, round_: int, event: str, site: str | None, reason: str) -> None:
        """One row for what a person has to know: a site left out, a round retried."""
        append_jsonl(self._path, {"round": round_, "event": event, "site": site, "reason": reason})

    def is_collapsing(self, site: str) -> bool:
        """Whether the features of ``site`` are coming to be all alike, by its rows so far."""
        return collapsing(self._watched.get(site, []))

    def _watch(self, row: dict[str, Any]) -> None:
        if "event" not in row:
            self._watched.setdefault(row["site"], []).append(row)
