"""Every third-party module that is imported is declared in pyproject.toml, where its package is covered."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = {
    "ssl_backdoor": ("clip", "vision"),
    "tasks": ("pipeline",),
    "flows": ("pipeline",),
    "infra": ("pipeline", "stack"),
    "tests": ("clip", "vision", "pipeline", "stack", "dev"),
}
WITH_TORCH = "triton"  # where torch supports it


def normalized(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ;]", requirement)[0].lower().replace("_", "-")


def imported(package: str) -> Iterator[str]:
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module


@pytest.mark.parametrize("package", EXTRAS)
def test_imports_are_declared(package):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [project["optional-dependencies"][extra] for extra in EXTRAS[package]]
    declared = {normalized(requirement) for group in (project["dependencies"], *extras) for requirement in group}
    own = {*EXTRAS, "golden", *(file.stem for file in (ROOT / "tests").rglob("*.py"))}
    distributions = packages_distributions()
    undeclared = {
        module
        for module in {name.partition(".")[0] for name in imported(package)} - own - sys.stdlib_module_names
        if not declared & {normalized(name) for name in distributions.get(module, [module])}
    }
    assert undeclared - {WITH_TORCH} == set()
