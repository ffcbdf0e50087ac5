"""Who may import whom, and that numbers live in the configuration only."""

import ast
import sys
from pathlib import Path

import pytest

import rlopt

PACKAGE = Path(rlopt.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
ALGOS = [name for name in FILES if name.startswith("algos/")]

TORCH_ONLY = {"torch"}
SUMS = {"torch", "rlopt.distributed"}
ALGO = {"torch"} | {
    f"rlopt.{module}"
    for module in ("types", "policies", "fisher", "linalg", "line_search", "distributed", "check")
}
ALLOWED = {
    "distributed.py": TORCH_ONLY,
    "types.py": SUMS | {"rlopt.linalg"},
    "linalg.py": SUMS,
    "line_search.py": TORCH_ONLY,
    "normalize.py": SUMS,
    "check.py": TORCH_ONLY,
    "distributions.py": TORCH_ONLY,
    "advantages.py": SUMS | {"rlopt.check", "rlopt.linalg"},
    "fisher.py": {"torch", "rlopt.linalg", "rlopt.types"},
} | dict.fromkeys(ALGOS, ALGO)


def imported(source):
    """Every module that a source imports anywhere: `rlopt.x`, `.x`, else its top-level package."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"rlopt.{a.name}" for a in node.names} if module == "rlopt" else {module}
    return {name if name.startswith(("rlopt", ".")) else name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import torch.nn as nn, hydra.utils", {"torch", "hydra"}),
        ("from rlopt import check, rollout", {"rlopt.check", "rlopt.rollout"}),
        ("from rlopt.algos.pg import PG", {"rlopt.algos.pg"}),
        ("from .pg import PG\nfrom . import pg", {".pg", "."}),
        ("def f():\n    from omegaconf import OmegaConf", {"omegaconf"}),
    ],
)
def test_imports_are_found_wherever_they_hide(source, modules):
    assert imported(source) == modules


@pytest.mark.parametrize("name", ALLOWED)
def test_a_module_imports_only_what_its_layer_may(name):
    modules = imported(FILES[name].read_text())
    assert modules - ALLOWED[name] - sys.stdlib_module_names == set()


@pytest.mark.parametrize("name", FILES)
def test_only_the_configuration_knows_hydra(name):
    knows_hydra = bool(imported(FILES[name].read_text()) & {"hydra", "omegaconf"})
    assert knows_hydra == (name in {"config.py", "targets.py", "build.py"})


def with_defaults(source):
    """Constructors of classes, and public functions, that give an argument a default."""
    for node in ast.parse(source).body:
        functions = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in functions:
            if not isinstance(function, ast.FunctionDef):
                continue
            if isinstance(node, ast.ClassDef) and function.name != "__init__":
                continue
            arguments = function.args
            if arguments.defaults or any(arguments.kw_defaults):
                yield getattr(node, "name", function.name)


def test_defaults_are_found():
    source = (
        "class A:\n    def __init__(self, *, x=1): ...\ndef f(x, y=None): ...\ndef g(x, *, y): ..."
    )
    assert list(with_defaults(source)) == ["A", "f"]


@pytest.mark.parametrize(
    "name",
    [
        *ALGOS,
        "policies.py",
        "networks.py",
        "baselines.py",
        "least_squares.py",
        "rollout.py",
        "recorder.py",
        "advantages.py",
    ],
)
def test_numbers_live_in_the_configuration_only(name):
    assert list(with_defaults(FILES[name].read_text())) == []
