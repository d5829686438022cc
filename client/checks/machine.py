"""What the machine has, and whether it is enough: disk, memory, processor, accelerator."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from client.checks.study import Needs
from federation.study import Study
from foundation.errors import StudyError
from foundation.machine import DeviceName, choose_device, machine
from imaging.inspection.finding import Finding, Table

_GIB = 2**30
_TIGHT = 0.8  # of what is free


def machine_findings(
    device: DeviceName, state: Path, cache: Path, study: Study | None = None, needs: Needs | None = None
) -> tuple[list[Finding], Table]:
    """What is missing, and the facts. ``state`` and ``cache`` need not exist yet; needs: of ``study`` at this site."""
    facts, rows = machine(), list[tuple[str, str]]()
    cores, (available, total) = usable_cores(), memory()
    found: list[Finding] = []
    chosen: torch.device | None = None
    try:
        chosen = choose_device(device)
    except StudyError as error:
        found.append(Finding("error", "machine", "device", str(error), "set device in the site file"))
    rows += [("system", facts["system"]), ("processor", f"{facts['processor']}, {cores} cores usable")]
    rows += [("memory", f"{total / _GIB:.1f} GiB, {available / _GIB:.1f} GiB available")]
    rows += [("accelerators", ", ".join(facts["gpus"]) or "none found")]
    rows += [("computes on", "–" if chosen is None else str(chosen))]
    if study is not None:
        found += _processor(study, cores, chosen)
    if needs is not None:
        found += [*_disk(needs, state, cache), *_memory(needs, chosen, available)]
    for name, place in {"state": state, "cache": cache}.items():
        rows.append((f"disk free for {name}", f"{free_at(place) / 1e9:.1f} GB"))
    return found, Table("Machine", "machine", ("", ""), tuple(rows))


def _processor(study: Study, cores: int, device: torch.device | None) -> Iterator[Finding]:
    threads = study.training.threads
    if threads > cores:
        yield Finding(
            "warning",
            "machine",
            "threads",
            f"the study trains with {threads} threads, and {cores} cores are usable",
            "give this process more cores, or expect slower rounds: a site cannot change the study's threads",
        )
    if device is not None and device.type == "cpu":
        yield Finding(
            "note",
            "machine",
            "no accelerator",
            "no GPU is used, training runs on the processor",
            "see the hours a round below; if there is a GPU, look whether its driver is seen by nvidia-smi",
        )


def _disk(needs: Needs, state: Path, cache: Path) -> Iterator[Finding]:
    wanted = {"the decoded images (cache)": (needs.store, cache), "the site's state": (needs.state, state)}
    if _device_of(state) == _device_of(cache):
        wanted = {"the decoded images and the site's state": (needs.store + needs.state, state)}
    for what, (size, place) in wanted.items():
        free = free_at(place)
        if size > _TIGHT * free:
            short = size > free
            yield Finding(
                "error" if short else "warning",
                "machine",
                "disk",
                f"{what} need up to {size / 1e9:.1f} GB on disk, and {free / 1e9:.1f} GB are free",
                "free space, or set state and cache in the site file to a larger disk",
            )


def _memory(needs: Needs, device: torch.device | None, available: int) -> Iterator[Finding]:
    on_gpu = device is not None and device.type == "cuda"
    there = torch.cuda.mem_get_info(device)[0] if on_gpu else available
    if needs.memory > _TIGHT * there:
        yield Finding(
            "error" if needs.memory > there else "warning",
            "machine",
            "memory",
            f"model, optimiser and batch need {needs.memory / _GIB:.1f} GiB and more for activations, and "
            f"{there / _GIB:.1f} GiB of {'GPU ' if on_gpu else ''}memory are available",
            "end other programs, or take a machine with more memory: a site cannot change the study's batch",
        )


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Bytes of memory that are available, and of all, within a container's limit."""
    page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = Path("/proc/meminfo")
    available = page * os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else total
    if info.exists():
        kib = {name: text for name, _, text in (line.partition(":") for line in info.read_text().splitlines())}
        available = int(kib["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        total = min(total, int(text))
    return min(available, total), total


def free_at(place: Path) -> int:
    """Bytes free on the disk of ``place``, which need not exist yet."""
    return shutil.disk_usage(_existing(place)).free


def _device_of(place: Path) -> int:
    return _existing(place).stat().st_dev


def _existing(place: Path) -> Path:
    """The nearest folder above ``place`` that exists."""
    return next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.is_dir())
