"""No code of the project loads what could run: by source, so that a new line cannot slip in."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ssl_backdoor", "tasks", "flows", "infra")
BANNED = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve", "yaml"}
PICKLE_READER = "ssl_backdoor/data/cifar.py"
"""CIFAR's archives are pickles: its reader lets through what makes a uint8 array, and is tested with hostile ones."""
PLUGIN_LOADER = "ssl_backdoor/plugins.py"
"""A plug-in is code that its user asks for by name; nothing else may run what it reads."""
NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
YAML_READER = "flows/spec_files.py"
"""Its loader is a SafeLoader, tested with hostile files."""
NEVER = {"eval", "exec", "compile", "os.system", "os.popen", "torch.hub.load", "torch.package.PackageImporter"}
NEVER |= {f"yaml.{name}" for name in ("load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all")}
NEVER_METHODS = {"extractall", "unpack_archive"}


def name_of(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{name_of(value)}.{name}"
    return ""


def dangers(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (f"imports {one.name}" for one in names if one.name.partition(".")[0] in BANNED)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in BANNED:
                yield f"imports {module}"
            case ast.Call(func=func, keywords=keywords):
                given = {one.arg: one.value.value for one in keywords if isinstance(one.value, ast.Constant)}
                name = name_of(func)
                if name in NEEDS and given.get(NEEDS[name][0]) is not NEEDS[name][1]:
                    yield f"{name} without {NEEDS[name][0]}={NEEDS[name][1]}"
                if name in NEVER or name.rpartition(".")[2] in NEVER_METHODS or given.get("shell") is True:
                    yield f"calls {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_could_run_is_loaded(package):
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) > 3
    found = {f"{path.relative_to(ROOT)}: {one}" for path in files for one in dangers(path.read_text(encoding="utf-8"))}
    allowed = {f"{PICKLE_READER}: imports pickle", f"{YAML_READER}: imports yaml"}
    allowed |= {f"{PLUGIN_LOADER}: calls {name}" for name in ("compile", "exec")}
    assert found - allowed == set()


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import numpy as np; np.load(file)",
        "np.load(file, allow_pickle=True)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "tarfile.open(file).extractall()",
        "shutil.unpack_archive(file)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
    ],
)
def test_the_search_finds(line):
    assert list(dangers(line))
    assert not list(dangers("torch.load(file, weights_only=True); np.load(file, allow_pickle=False)"))
