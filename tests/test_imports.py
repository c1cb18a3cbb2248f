"""The layers of the code: imports point from an upper layer to the same or a lower one, and never in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import gpt2

PACKAGE = Path(gpt2.__file__).parent
LAYERS = [
    {"errors", "spelling", "system", "streams", "files", "json_file", "long_runs"},
    {
        "model",
        "nanogpt_methods",
        "accounting",
        "device",
        "gpus",
        "special_tokens",
        "tokenizers",
        "chat",
        "answers",
        "chunked_loss",
        "documents",
        "distributed",
        "tensor_file",
    },
    {"data", "optim", "formats", "generation", "runlog", "reporting", "inside", "serve"},
    {"evaluation", "checkpoint"},
    {"training"},
    {"bench", "doctor"},
    {"cli", "api"},
]
ENTRANCES = {"__init__", "__main__"}
LAZY = {"nanogpt_methods"}
"""Modules whose imports inside functions may point upward: methods of the model that users of nanoGPT know."""


def modules() -> dict[str, Path]:
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """Modules of this package that a file names, below `gpt2.`; imports inside functions count too.

    Imports for type checkers alone do not count, nor those inside the functions of LAZY modules.
    """
    found = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "gpt2":
                found |= {module[5:]} if module != "gpt2" else {alias.name for alias in names}
            case ast.Import(names=names):
                found |= {alias.name[5:] for alias in names if alias.name.startswith("gpt2.")}
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.FunctionDef() if path.stem in LAZY:
                continue
        nodes += ast.iter_child_nodes(node)
    return found - {"__version__"}


def layer(module: str) -> int:
    package = module.split(".")[0]
    return next(number for number, packages in enumerate(LAYERS) if package in packages)


def test_every_package_has_a_layer() -> None:
    packages = {name.split(".")[0] for name in modules()} - ENTRANCES - {"recipes"}
    assert packages == set().union(*LAYERS)


def test_no_import_points_to_a_higher_layer() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, path in modules().items()
        if name.split(".")[0] not in ENTRANCES
        for target in imports(path)
        if layer(target) > layer(name)
    ]
    assert wrong == []


def test_packages_do_not_import_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in modules().items():
        package = name.split(".")[0]
        if package not in ENTRANCES:
            graph.setdefault(package, set()).update({t.split(".")[0] for t in imports(path)} - {package})
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


def test_preparing_text_does_not_wait_for_pytorch(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words\n" * 200)
    program = (
        "import sys; from gpt2.cli import main\n"
        "try: main(['prepare', 'text.txt', '--tokenizer=byte', '--out=d'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]
    assert (tmp_path / "d" / "train.bin").is_file()


def test_the_live_report_does_not_wait_for_the_models_it_does_not_serve() -> None:
    code = (
        "import sys; import gpt2.serve.live\n"
        "print([m for m in ('uvicorn', 'torch', 'pydantic', 'prometheus_client') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["['uvicorn']"]
