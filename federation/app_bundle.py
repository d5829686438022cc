"""The Flower app of a study: names of installed objects and the study's hash, no code. The same bytes everywhere.

A SuperLink runs nothing without an app bundle, and Flower's own executors run whatever it holds. Ours run the installed
apps, and only for a bundle that equals, byte for byte, the one a site makes itself from the study it has approved. So
the archive is written plainly: a fixed order and date, and no compression, whose bytes depend on the library.
"""

import hashlib
import importlib.metadata
import io
import zipfile

from federation.study import Study

SERVER_APP, CLIENT_APP = "server.app:app", "client.app:app"
_DATE = (1980, 1, 1, 0, 0, 0)


def app_bundle(study: Study) -> bytes:
    """The bundle of this study for this version of the program; differs where what is trained differs."""
    described = _pyproject(study).encode()
    digest = hashlib.sha256(described).hexdigest()
    content = f"pyproject.toml,{digest},{8 * len(described)}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {"pyproject.toml": described, ".info/CONTENT": content.encode()}.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = 3  # otherwise Windows and others write another byte
            archive.writestr(entry, data)
    return buffer.getvalue()


def _pyproject(study: Study) -> str:
    version = importlib.metadata.version("fedpretext")
    return (
        f'[project]\nname = "{study.name}"\nversion = "{version}"\n'
        'description = "A study of fedpretext; holds no code"\n'
        'license = { text = "Apache-2.0" }\ndependencies = []\n\n'
        '[tool.flwr.app]\npublisher = "fedpretext"\n\n'
        f'[tool.flwr.app.components]\nserverapp = "{SERVER_APP}"\nclientapp = "{CLIENT_APP}"\n\n'
        f'[tool.flwr.app.config]\ntraining-hash = "{study.training_hash()}"\n'
    )


def bundle_digest(bundle: bytes) -> str:
    """SHA-256 in hex, by which Flower names a bundle."""
    return hashlib.sha256(bundle).hexdigest()
