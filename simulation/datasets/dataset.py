"""What a public dataset is to a simulation: a name, a licence, options, a function that lists its images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from foundation.configuration.section import Section
from foundation.errors import DataError, StudyError, nearest
from imaging.listing.manifest import Manifest

Options = TypeVar("Options", bound=Section)


class NoOptions(Section):
    """For datasets that leave nothing to choose."""


@dataclass(frozen=True)
class Dataset(Generic[Options]):
    """One entry of the table ``DATASETS``.

    ``listing(root, workspace, seed, options)`` returns all images, with the column site where real sites
    exist. It may write below ``workspace``, never below ``root``.
    """

    name: str
    summary: str
    source: str
    """Where it comes from and its licence, one line."""
    options: type[Options]
    listing: Callable[[Path | None, Path, int, Options], Manifest]
    foresee: Callable[[int, Options], Manifest] | None = None
    """Of images that are made on the spot: the listing for a seed and options without making them. Its files are not
    there, nor its boxes."""

    def check_options(self, options: Mapping[str, Any]) -> Options:
        """The options as the dataset's own model; StudyError with the key, the reason and what there is."""
        try:
            return self.options.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            known = list(self.options.model_fields)
            there = f"{self.name} has the options: {', '.join(known)}" if known else f"{self.name} has no options"
            raise StudyError(
                f"simulation.options.{key} = {first['input']!r}: {first['msg']}; {there}{nearest(key, known)}"
            ) from error

    def load(
        self, root: Path | None, workspace: Path, seed: int, options: Mapping[str, Any], *, drawn: bool = True
    ) -> Manifest:
        """All images of the dataset.

        ``root``: the folder the user keeps it in, None for datasets that need none. ``workspace``: a folder of
        the program's own, for what is made or downloaded. ``seed`` matters to datasets made on the spot; not
        ``drawn``, these are only listed.
        """
        chosen = self.check_options(options)
        if self.foresee is not None and not drawn:
            return self.foresee(seed, chosen)
        return self.listing(root, workspace, seed, chosen)


def needed_root(root: Path | None, name: str, holds: str) -> Path:
    """``root`` as an existing folder; DataError with the remedy otherwise. ``holds``: what it must have."""
    if root is None:
        raise DataError(
            f"dataset {name!r} needs simulation.root, the folder with {holds}; --set simulation.root=FOLDER"
        )
    if not root.is_dir():
        raise DataError(
            f"{root}: there is no such folder; dataset {name!r} needs the folder with {holds},"
            " --set simulation.root=FOLDER"
        )
    return root
