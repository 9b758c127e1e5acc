"""House rules that no linter knows; `make check` runs this. Prints what breaks a rule and where.

Budgets of files and functions only warn: they ask for a second look, and a reader decides.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
PACKAGES = ("ssl_backdoor", "tasks", "flows")
HOSTS = re.compile(r"p[y]pi\.org|python[h]osted\.|npm[j]s\.org|deb\.debia[n]\.")
MACHINE_PATHS = re.compile(r"(?:^|[^\w.])/(?:work|farm|root|home)/\w")


def tracked() -> list[Path]:
    """Files under version control, or about to be."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def long_code(path: Path) -> Iterator[str]:
    """Files over 400 lines, functions over 50."""
    source = path.read_text(encoding="utf-8")
    lines = source.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{path.relative_to(ROOT)}: {lines} lines, at most {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}: {length} lines (max {MAX_FUNCTION_LINES})"


def foreign_text(path: Path) -> Iterator[str]:
    """Registry hosts and paths of one machine."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        if HOSTS.search(line):
            yield f"{path.relative_to(ROOT)}:{number}: names a registry host; pins go by name and version only"
        if MACHINE_PATHS.search(line) and path.suffix != ".html":
            yield f"{path.relative_to(ROOT)}:{number}: a path of one machine"


def unmapped_folders() -> Iterator[str]:
    """Folders of the library that the README's map does not name."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for package in PACKAGES:
        for folder in [ROOT / package, *(ROOT / package).iterdir()]:
            if folder.is_dir() and folder.name != "__pycache__" and f"{folder.name}/" not in readme:
                yield f"README.md: the layout does not name {folder.relative_to(ROOT)}/"


def torch_in_specs() -> Iterator[str]:
    """``import ssl_backdoor.specs`` must leave torch, prefect, ray and mlflow alone."""
    script = (
        "import sys, ssl_backdoor.specs, ssl_backdoor.identity, ssl_backdoor.store, ssl_backdoor.stages;"
        "print(*sorted({'torch', 'prefect', 'ray', 'mlflow', 'boto3'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    if loaded.stdout.strip():
        yield f"importing the library's light modules loads {loaded.stdout.strip()}"


def main() -> None:
    """Check every rule."""
    found: list[str] = []
    for path in tracked():
        found += foreign_text(path)
        if path.suffix == ".py":
            for each in long_code(path):
                print(f"warning: {each}")
    found += unmapped_folders()
    found += torch_in_specs()
    print("\n".join(found) or "house rules: all kept")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
