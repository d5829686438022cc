"""The rooms' order, where Flower may be known, and that importing anything draws no random number."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEVELS = {
    "foundation": 0,
    "imaging": 1,
    "ssl_methods": 2,
    "evaluation": 3,
    "federation": 4,
    "client": 5,
    "server": 5,
    "simulation": 6,
    "advisor": 7,
    "attacks": 7,
    "fedpretext": 8,
}
KNOW_PRIVATE_FLOWER = {
    "federation/flower/private.py",
    "federation/flower/private_control.py",
    "federation/flower/private_identity.py",
}
KNOW_FLOWER = {
    "federation/flower/records.py",
    "federation/flower/permitted.py",
    *KNOW_PRIVATE_FLOWER,
    "federation/flower/secure_records.py",
    "client/processes/worker.py",
    "server/site_channel.py",
    "server/fleet_channel.py",
    "server/requests.py",
    "server/audit_exchange.py",
    "server/processes/service.py",
    "federation/algorithms/flower_strategies.py",
    "client/app.py",
    "client/refusals.py",
    "client/sites.py",
    "server/app.py",
    "simulation/runtimes/grid.py",
    "simulation/runtimes/table.py",
    "simulation/runtimes/ray.py",
    "simulation/runtimes/ray_apps.py",
}
PUBLIC_FLOWER = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
SEEDING = {
    "torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all", "np.random.seed", "numpy.random.seed", "random.seed",
}  # fmt: skip


def files() -> list[Path]:
    """Every module of the project but tests and benchmarks."""
    found: list[Path] = []
    for room in LEVELS:
        found += sorted((ROOT / room).rglob("*.py"))
    return [path for path in found if path.exists()]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """(module, names taken from it) of every import in the module, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the room's name"
            assert node.module is not None
            yield node.module, [alias.name for alias in node.names]


def of_every_file(rule: Callable[[Path], None]) -> Callable[[], None]:
    """One test of a rule that every module has to keep."""

    def test() -> None:
        for path in files():
            try:
                rule(path)
            except AssertionError as error:
                error.add_note(f"in {name_of(path)}")
                raise

    return test


def test_there_is_something_to_look_at() -> None:
    rooms = {name_of(path).split("/")[0].removesuffix(".py") for path in files()}
    assert rooms == set(LEVELS)
    assert len(files()) > 50


@of_every_file
def test_rooms_import_only_downwards(path: Path) -> None:
    room = name_of(path).split("/")[0].removesuffix(".py")
    for module, _ in imports(parsed(path)):
        other = module.split(".")[0]
        if other in LEVELS and other != room:
            assert LEVELS[other] < LEVELS[room], f"{name_of(path)} imports {module}"


def test_no_circles() -> None:
    """Also none through imports that stand inside a function or under TYPE_CHECKING."""
    modules = {name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files()}
    needs: dict[str, set[str]] = {}
    for module, path in modules.items():
        taken = {inner for outer, names in imports(parsed(path)) for inner in (outer, *(f"{outer}.{n}" for n in names))}
        needs[module] = (taken & set(modules)) - {module}
    list(TopologicalSorter(needs).static_order())  # CycleError names the modules of a circle


@of_every_file
def test_flower_is_known_in_few_places_and_its_private_parts_in_fewer(path: Path) -> None:
    for module, names in imports(parsed(path)):
        if module.split(".")[0] != "flwr":
            continue
        assert name_of(path) in KNOW_FLOWER, f"{name_of(path)} imports {module}"
        if name_of(path) not in KNOW_PRIVATE_FLOWER:
            assert module in PUBLIC_FLOWER, f"{name_of(path)} imports {module}, which Flower does not promise to keep"
            assert not any(name.startswith("_") for name in names)


@of_every_file
def test_nobody_seeds_the_whole_process(path: Path) -> None:
    """foundation/randomness.py seeds torch's generator for a block and puts it back; nobody else touches it."""
    if name_of(path) == "foundation/randomness.py":
        return
    calls = [ast.unparse(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    assert not SEEDING & set(calls)
    assert not any("default_generator" in call or "set_rng_state" in call for call in calls)


IMPORT_ALL = """
import importlib, sys
import numpy, torch
before = torch.random.get_rng_state(), numpy.random.get_state()[1].copy()
for module in sys.argv[1:]:
    importlib.import_module(module)
assert torch.equal(torch.random.get_rng_state(), before[0]), "torch's generator moved"
assert (numpy.random.get_state()[1] == before[1]).all(), "numpy's generator moved"
assert "ray" not in sys.modules, "Ray was imported, which takes seconds and is optional"
"""


def test_importing_the_rooms_draws_nothing() -> None:
    modules = [name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files()]
    modules = [module for module in modules if module != "simulation.runtimes.ray"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *modules], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
