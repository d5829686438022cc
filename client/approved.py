"""What a site has approved, by its records alone: a status need not wait for torch to check each study again."""

from pathlib import Path

from client.site_file import SiteFile
from federation.study_hash import training_hash_of
from foundation.configuration.yaml_files import read_yaml
from foundation.errors import StudyError


def record_path(site_file: SiteFile, training_hash: str) -> Path:
    """Where the approval of the study with this hash is recorded."""
    return site_file.state / "approvals" / f"{training_hash[:16]}.yaml"


def record_paths(site_file: SiteFile) -> list[Path]:
    """All records of approvals."""
    return sorted((site_file.state / "approvals").glob("*.yaml"))


def approved_name(path: Path) -> tuple[str, str]:
    """Name and training hash of the study of a record; StudyError where it is not the study that was approved."""
    recorded = read_yaml(path)
    study = recorded.get("study")
    study = study if isinstance(study, dict) else {}
    own = training_hash_of(study)
    check_record(path, own, str(recorded.get("training_hash")), study.get("simulation") is None)
    return str(study.get("name")), own


def check_record(path: Path, own: str, recorded: str, without_simulation: bool) -> None:
    """StudyError where a record's study has another hash (``own``) than was approved, or than its file is named by."""
    if own != recorded or path.stem != own[:16] or not without_simulation:
        raise StudyError(
            f"{path}: the recorded study is not the one that was approved (the file was changed, or another version of "
            "this program wrote it); approve the study again with `fedpretext site approve STUDY`"
        )
