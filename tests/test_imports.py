"""The plan of the house: imports point from an upper floor to a lower one, never down, never in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import gpt2

PACKAGE = Path(gpt2.__file__).parent
FLOORS = [
    {"errors", "streams", "files"},
    {"model", "accounting", "device", "tokenizers", "head_loss", "distributed", "tensor_file"},
    {"data", "optim", "formats", "generation", "runlog", "report"},
    {"evaluate", "checkpoint"},
    {"training"},
    {"bench"},
    {"cli"},
]
ENTRANCES = {"__init__", "__main__"}


def modules() -> dict[str, Path]:
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """Modules of this package that a file names, below `gpt2.`; imports inside functions count too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "gpt2":
                found |= {module[5:]} if module != "gpt2" else {alias.name for alias in names}
            case ast.Import(names=names):
                found |= {alias.name[5:] for alias in names if alias.name.startswith("gpt2.")}
    return found - {"__version__"}


def floor(module: str) -> int:
    room = module.split(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_has_a_floor() -> None:
    rooms = {name.split(".")[0] for name in modules()} - ENTRANCES - {"recipes"}
    assert rooms == set().union(*FLOORS)


def test_no_import_points_to_a_higher_floor() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, path in modules().items()
        if name.split(".")[0] not in ENTRANCES
        for target in imports(path)
        if floor(target) > floor(name)
    ]
    assert wrong == []


def test_rooms_do_not_import_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in modules().items():
        room = name.split(".")[0]
        if room not in ENTRANCES:
            graph.setdefault(room, set()).update({t.split(".")[0] for t in imports(path)} - {room})
    TopologicalSorter(graph).prepare()


def test_modules_do_not_import_in_a_circle() -> None:
    graph = {name.removesuffix(".__init__"): imports(path) for name, path in modules().items()}
    TopologicalSorter({n: t for n, t in graph.items() if n not in ENTRANCES}).prepare()


def test_help_does_not_wait_for_heavy_imports() -> None:
    code = (
        "import sys\nfrom gpt2.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'matplotlib', 'tiktoken') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
