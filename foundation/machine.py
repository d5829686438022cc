"""The machine: device choice, threads, and what a run records of where it ran."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from foundation.errors import StudyError, look_up

if TYPE_CHECKING:
    import torch  # where it is needed it is imported: that takes seconds, and short commands do without

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
_RECORDED = ("fedpretext", "torch", "timm", "monai", "flwr", "numpy", "scikit-learn", "pandas", "safetensors")


def checked_device(name: str) -> DeviceName:
    """``name`` as a device, or a StudyError that lists them."""
    known = {device: device for device in get_args(DeviceName)}
    device: DeviceName = look_up(known, name, "device")
    return device


def choose_device(name: DeviceName) -> "torch.device":
    """The device of that name; ``auto`` takes CUDA, then Apple's GPU, then the CPU."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device in ("cuda", "mps", "cpu") if present[device]))
    if not present[name]:
        usable = ", ".join(device for device, there in present.items() if there)
        raise StudyError(f"device {name!r} is not on this machine; there are: {usable} (or write auto)")
    return torch.device(name)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for package in _RECORDED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor, memory, accelerator and system, without names of host or user."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus,
    }


def provenance(command: str) -> dict[str, Any]:
    """What a run's record says of how it was made: versions, machine, commit and command."""
    return {"versions": versions(), "machine": machine(), "commit": commit(), "command": command}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def command_line(otherwise: str) -> str:
    """The command that this process is, as it was typed; ``otherwise`` in a notebook or a script."""
    return " ".join(["fedpretext", *sys.argv[1:]]) if sys.argv[0].endswith("fedpretext") else otherwise


def commit() -> str:
    """The commit of the checkout this code stands in, with "+changes" where it is not clean; "unknown" elsewhere."""
    here = Path(__file__).resolve().parent.parent
    try:
        name = _git(here, "rev-parse", "HEAD")
        return name + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()
