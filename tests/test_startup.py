"""What a command may import before it does anything; `python -m benchmarks.startup` measures the seconds."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from benchmarks.startup import DEMO, LOAD, ROOT, commands
from federation.algorithms import ALGORITHMS, algorithm_type
from ssl_methods import METHODS, method_type

NO_STUDY = ("torch", "timm", "numpy", "pandas", "flwr", "scipy", "sklearn", "matplotlib", "monai", "pydicom")
A_STUDY = ("timm", "torchvision", "pandas", "flwr", "scipy", "sklearn", "matplotlib", "monai", "pydicom")
VALIDATE = ("flwr", "scipy", "sklearn", "matplotlib", "monai", "torch._dynamo")
RUN = """
import fedpretext.cli
try:
    fedpretext.cli.main()
except SystemExit as done:
    assert not done.code, done.code
"""
TOLD = "\nimport sys; print('loaded', *sys.modules)"


def loaded(code: str, *arguments: str) -> set[str]:
    """The modules that a fresh Python has in the end."""
    done = subprocess.run([sys.executable, "-c", code + TOLD, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """The commands that load no study, on a federation of two sites."""
    return commands(tmp_path_factory.mktemp("federation"))


NAMES = [
    "--help", "methods", "algorithms", "encoders", "status", "audit", "site init", "site status", "site key", "accept",
    "expiry",
]  # fmt: skip


def test_none_is_forgotten(lines: dict[str, tuple[str, ...]]) -> None:
    assert list(lines) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_command_that_loads_no_study_imports_no_torch(name: str, lines: dict[str, tuple[str, ...]]) -> None:
    assert not loaded(RUN, *lines[name]) & set(NO_STUDY)


def test_a_study_imports_the_method_and_the_algorithm_that_it_names() -> None:
    modules = loaded(LOAD, str(DEMO))
    assert not modules & set(A_STUDY)
    named = {METHODS["simclr"].path.rpartition(".")[0], ALGORITHMS["fedavg"].path.rpartition(".")[0]}
    others = {facts.path.rpartition(".")[0] for table in (METHODS, ALGORITHMS) for facts in table.values()} - named
    assert named <= modules
    assert not modules & others


def test_validate_imports_neither_flower_nor_what_reports_need() -> None:
    assert not loaded(RUN, "validate", str(DEMO)) & set(VALIDATE)


@pytest.mark.parametrize(("table", "type_of"), [(METHODS, method_type), (ALGORITHMS, algorithm_type)])
def test_the_tables_facts_are_those_of_the_classes(
    table: dict[str, object], type_of: Callable[[str], type[object]]
) -> None:
    """Classes have them from the table: each entry's path leads to the class that took that entry."""
    for name, facts in table.items():
        found = type_of(name)
        assert vars(facts) == {fact: getattr(found, fact) for fact in vars(facts)}
        assert f"{found.__module__}.{found.__qualname__}" == vars(facts)["path"]
        assert found.Config.model_fields["name"].default == name  # type: ignore[attr-defined]  # both kinds have one
