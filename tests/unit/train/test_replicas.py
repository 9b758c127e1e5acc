"""One replica and two give the same training, through the same functions; two are real processes over gloo."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from ssl_backdoor.errors import SpecError
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import Resources
from ssl_backdoor.train.checkpoint import NoCheckpoints
from ssl_backdoor.train.pretrain import pretrain
from tests.support import ROOT
from tests.support.listening_sockets import ON_LOOPBACK
from tests.support.tiny_sets import tiny_dataset
from tests.support.tiny_training import METHODS, train_spec
from tests.support.training_replicas import run_all

pytestmark = pytest.mark.slow
NAMES = [*METHODS, "compress_1", "compress_2"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the single process and of the two; byol's two replicas go on from the single one's state."""
    alone, both = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("both")
    run_all(alone, 1)
    shutil.copytree(alone / "states-0" / "byol", both / "states-0" / "byol")
    command = [
        *(*ON_LOOPBACK, sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=127.0.0.1:0", "--module", "tests.support.training_replicas", str(both)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    return alone, both


@pytest.mark.parametrize("name", NAMES)
def test_same_losses(results: tuple[Path, Path], name: str) -> None:
    alone, both = (pq.read_table(folder / f"{name}-0" / "curves.parquet") for folder in results)
    assert alone["step"] == both["step"]
    assert alone["name"] == both["name"]
    assert len(set(alone["step"].to_pylist())) == (10 if name in METHODS else 8)
    assert both["value"].to_pylist() == pytest.approx(alone["value"].to_pylist(), rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_same_weights_and_statistics(results: tuple[Path, Path], name: str) -> None:
    files = [file.name for file in (results[0] / f"{name}-0").glob("*.safetensors")]
    assert ("text.safetensors" in files) == (name in METHODS and METHODS[name].has_text_tower)
    for file in files:
        alone, both = (load_file(folder / f"{name}-0" / file) for folder in results)
        for key, value in alone.items():
            torch.testing.assert_close(both[key], value, rtol=1e-3, atol=2e-5, msg=lambda t, key=key: f"{key}: {t}")


def test_gradients_flow_through_the_gathered_rows(results: tuple[Path, Path]) -> None:
    alone = load_file(results[0] / "nt_xent-0.safetensors")
    for rank in (0, 1):
        both = load_file(results[1] / f"nt_xent-{rank}.safetensors")
        for name, value in alone.items():
            torch.testing.assert_close(both[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_each_row_reaches_the_replica_that_takes_it(results: tuple[Path, Path]) -> None:
    order = torch.randperm(16, generator=torch_generator(0, "order"))
    for folder, rank in ((results[0], 0), (results[1], 0), (results[1], 1)):
        found = load_file(folder / f"nt_xent-{rank}.safetensors")
        assert torch.equal(found["shuffled"], found["everyone"][order].view(-1, 2, 2))


def test_only_replica_0_writes_but_both_tell(results: tuple[Path, Path]) -> None:
    _, both = results
    assert not [file for name in NAMES for file in (both / f"{name}-1").iterdir()]
    summaries = [json.loads((both / f"summaries-{rank}.json").read_text()) for rank in (0, 1)]
    for name in NAMES:
        assert summaries[0][name]["final_loss"] == pytest.approx(summaries[1][name]["final_loss"], rel=1e-6)
    assert not list((both / "states-1").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("workers", "sentence"),
    [
        (3, "workers must divide bn_groups.*found 3 workers and bn_groups 2"),
        (2, r"resources ask for 2 worker\(s\), but 1 process\(es\) train together"),
    ],
)
def test_workers_that_do_not_fit(tmp_path: Path, workers: int, sentence: str) -> None:
    dataset = tiny_dataset(tmp_path, size=(12, 12))
    with pytest.raises(SpecError, match=sentence):
        pretrain(train_spec("byol"), dataset, None, tmp_path, 0, Resources(workers=workers), NoCheckpoints())
