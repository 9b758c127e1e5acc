"""A plain install, run as one is at work: behind a proxy, from a folder of one's own modules, under a batch system."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.command_server import TINY

pytestmark = [pytest.mark.services, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PACKAGES = ("ssl_backdoor", "tasks", "flows")
OWN_MODULES = ("tasks/__init__", "flows/__init__", "prefect", "ray", "mlflow", "torch", "numpy", "typing", "uvicorn")
SHELL = {
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "corp.example",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "nowhere.example",
    "MASTER_PORT": "1",
    "SLURM_PROCID": "1",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the wheel, in an environment that sees what is installed here, but not this checkout."""
    folder = tmp_path_factory.mktemp("plain")
    source, place = folder / "source", folder / "venv"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PACKAGES, "pyproject.toml"]
    names = subprocess.run([*listed, "README.md", "LICENSE"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    venv.create(place)
    python = place / "bin" / "python"
    (python.parents[1] / f"lib/python{sysconfig.get_python_version()}/site-packages/present.pth").write_text(
        sysconfig.get_path("purelib")
    )
    uv = [str(Path(sys.executable).parent / "uv")]
    build = [
        *uv,
        "build",
        "--wheel",
        "--offline",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "-o",
        str(folder),
    ]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    install = [*uv, "pip", "install", "--no-deps", "--offline", "--no-index", "--python", str(python), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return python.parent / "ssl-backdoor"


def test_a_plain_install_runs_on_a_machine_as_it_is(program, tmp_path):
    work, home, long = tmp_path / "work", tmp_path / "a?b#c%20d é", tmp_path / ("long" * 20)
    for each in (work, long):
        each.mkdir()
    for name in OWN_MODULES:
        (work / f"{name}.py").parent.mkdir(exist_ok=True)
        (work / f"{name}.py").write_text(f"raise SystemExit('{name} of the working folder was imported')")
    named = ("PYTHON", "PREFECT_", "MLFLOW_", "RAY_", "SSL_BACKDOOR_", "HOME")
    env = {name: value for name, value in os.environ.items() if not name.startswith(named)}
    env |= {**SHELL, "SSL_BACKDOOR_HOME": str(home), "TMPDIR": str(long)}
    begin = ["bash", "-c", 'ulimit -S -n 64; exec "$@"', "bash", str(program)]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*begin, *arguments], cwd=work, env=env, capture_output=True, text=True, timeout=900)

    done = run("run", "demo", "--methods", "byol", *TINY)
    assert done.returncode == 0, done.stderr
    assert f"report: {home}/store/report/" in done.stdout
    assert (home / "mlflow.db").exists()
    assert (home / "prefect" / "prefect.db").exists()
    assert {one.name for one in tmp_path.iterdir()} == {"work", home.name, long.name}
    assert list(long.iterdir()) == []
    shown = run("status")
    assert (shown.returncode, "holds every report" in shown.stdout) == (0, True), shown.stderr
    examined = run("doctor")
    lines = [line for line in examined.stdout.splitlines() if line.startswith("FIX")]
    assert [line for line in lines if not line.startswith("FIX  disk")] == []
