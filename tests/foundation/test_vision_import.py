"""timm is importable, when it is asked for, and only the one known failure of torchvision is worked around."""

import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from foundation import torchvision_fit, vision_import

ROOT = Path(__file__).resolve().parents[2]
HOOKED = """
import sys, runpy
sys.path.insert(0, sys.argv[1])
runpy.run_path(sys.argv[2], run_name="_fedpretext_torchvision_fit")
import torchvision
print(torchvision.HERE)
"""
FAKE = "import torch\nassert torch.ops.torchvision.nms\nHERE = 'imported'\n"


def test_timm_builds_a_model() -> None:
    encoder = vision_import.timm.create_model("resnet10t", num_classes=0).eval()
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 512)


def test_there_is_nothing_else_to_import() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'tim'"):
        vision_import.tim  # noqa: B018


def test_timm_and_torchvision_import_by_themselves_here() -> None:
    """What the installation checks and, where need be, mends: `make` has run it in this environment."""
    assert torchvision_fit.failure() == ""


def test_timm_comes_when_it_is_read_and_without_the_compiler() -> None:
    """torch._dynamo is two seconds that only torch.compile needs; afterwards it is the real one."""
    code = """
import sys
from foundation import vision_import
assert "torch" not in sys.modules
assert vision_import.timm.is_model("resnet18")
assert "torch._dynamo" not in sys.modules and "torch._dynamo.utils" not in sys.modules
import torch
assert torch.compiler.disable.__module__ == "torch.compiler"
assert torch.compile(torch.nn.Linear(2, 2), backend="eager")(torch.ones(1, 2)).shape == (1, 2)
assert isinstance(sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu"), bool)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", torchvision_fit.BOX_OPERATORS)
def test_a_declared_operator_is_never_silently_wrong(name: str) -> None:
    assert vision_import.timm
    operator = getattr(torch.ops.torchvision, name)
    boxes, scores = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]), torch.tensor([0.5, 0.9])
    try:
        kept = operator(boxes, scores, 0.5).tolist()
    except NotImplementedError:
        return  # declared by name only, or not made for this type
    assert kept == [1]


def hooked(package: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Import a torchvision that says ``text``, whose compiled part is no library, as the .pth file has it."""
    (package / "torchvision").mkdir()
    (package / "torchvision" / "__init__.py").write_text(text)
    (package / "torchvision" / "_C.so").write_bytes(b"of another build")
    file = Path(torchvision_fit.__file__)
    return subprocess.run([sys.executable, "-I", "-c", HOOKED, str(package), str(file)], capture_output=True, text=True)


def test_the_hook_declares_what_cannot_be_loaded(tmp_path: Path) -> None:
    done = hooked(tmp_path, FAKE)
    assert done.stdout == "imported\n", done.stderr


def test_other_failures_of_torchvision_are_not_swallowed(tmp_path: Path) -> None:
    done = hooked(tmp_path, "raise RuntimeError('torchvision is damaged')\n")
    assert done.returncode != 0
    assert "RuntimeError: torchvision is damaged" in done.stderr


def test_the_installation_mends_the_known_failure_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))

    def found(*failures: str) -> None:
        said = iter(failures)
        monkeypatch.setattr(torchvision_fit, "failure", lambda: next(said))
        torchvision_fit.install()

    found("")
    with pytest.raises(SystemExit, match=r"fails here \(ModuleNotFoundError: No module named 'timm'\): install"):
        found("ModuleNotFoundError: No module named 'timm'")
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""
    known = "RuntimeError: operator torchvision::nms does not exist"
    with pytest.raises(SystemExit, match="operator torchvision::nms"):
        found(known, known)
    found(known, "")
    (name,) = (path.stem for path in tmp_path.glob("*.pth"))
    assert (tmp_path / f"{name}.pth").read_text() == f"import {name}\n"
    assert (tmp_path / f"{name}.py").read_text() == Path(torchvision_fit.__file__).read_text()
    assert "declared by name only" in capsys.readouterr().out


def test_the_copy_imports_nothing_until_torchvision_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python of the environment reads it at its start."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before = set(sys.modules)
    kept = runpy.run_path(torchvision_fit.__file__, run_name="_fedpretext_torchvision_fit")
    assert sys.meta_path[0] is kept["Finder"]
    assert set(sys.modules) == before
