"""Every third-party module that is imported is declared in pyproject.toml, where its package is covered."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from ssl_backdoor.errors import SpecError
from ssl_backdoor.store import open_store

ROOT = Path(__file__).parents[2]
EXTRAS = {
    "ssl_backdoor": ("clip", "vision", "report", "s3"),
    "tasks": ("pipeline", "report", "s3"),
    "flows": ("pipeline", "report", "s3"),
    "infra": ("pipeline", "stack", "s3"),
    "tests": ("clip", "vision", "report", "s3", "pipeline", "stack", "dev"),
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


OPTIONAL = {"report": ("ssl_backdoor/report/",), "s3": ("ssl_backdoor/store/s3", "ssl_backdoor/data/remote_")}


def test_the_core_imports_what_the_core_declares():
    """What an extra brings is imported in its own files alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = packages_distributions()
    for extra, places in OPTIONAL.items():
        brought = {normalized(one) for one in project["optional-dependencies"][extra]}
        names = {name for name, found in modules.items() if brought & {normalized(one) for one in found}}
        assert names
        for file in (ROOT / "ssl_backdoor").rglob("*.py"):
            place = file.relative_to(ROOT).as_posix()
            if not place.startswith(places):
                tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                found = {node.module for node in tree if isinstance(node, ast.ImportFrom) and node.module}
                found |= {one.name for node in tree if isinstance(node, ast.Import) for one in node.names}
                assert not names & {name.partition(".")[0] for name in found}, place


def test_an_extra_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "ssl_backdoor.store.s3", raising=False)
    with pytest.raises(SpecError, match=r"a store on S3 needs boto3: pip install 'ssl-backdoor\[s3\]'"):
        open_store("s3://bucket/prefix")
