"""Task files: what encoders are to be judged on, apart from any study."""

from pathlib import Path

from pydantic import Field

from evaluation.config import EvaluationConfig
from foundation.configuration.yaml_files import checked, read_yaml
from foundation.errors import StudyError
from imaging.config import ImageConfig
from imaging.listing.splits import SplitConfig


class TaskFile(EvaluationConfig):
    """The keys of a study's ``evaluation`` section, and where labelled images are. One YAML file a task."""

    data: Path | None = Field(
        default=None,
        description="Labelled images: a manifest, or a folder with one; a relative path starts at the task file. "
        "Left out: those of the simulated runs that are judged, with the split that was drawn before they trained.",
    )
    dataset: str = Field(default="", description="Name of the data in tables and report; default: the folder's.")
    image: ImageConfig | None = Field(
        default=None, description="How encoders see an image that do not say it themselves (timm's, say)."
    )
    splits: SplitConfig = Field(
        default=SplitConfig(), description="How the patients of ``data`` are divided; once, and written down."
    )


def read_task(path: Path) -> TaskFile:
    """A task file, its ``data`` made absolute. StudyError in one line."""
    if not path.is_file():
        raise StudyError(f"{path}: there is no such task file; the ready ones are in configs/tasks/")
    task = checked(TaskFile, read_yaml(path), str(path))
    if task.data is None:
        if "splits" in task.model_fields_set:
            raise StudyError(f"{path}: splits does nothing without data, as the runs' own split holds; leave it out")
        return task
    return task.model_copy(update={"data": (path.parent / task.data).absolute()})
