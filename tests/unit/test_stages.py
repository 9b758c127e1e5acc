"""One place decides whether a stage's artifact is reused, and who commits it."""

import pytest
import torch

from ssl_backdoor.device import pick_device
from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs import DatasetSpec, Resources, ScenesSourceSpec
from ssl_backdoor.stages import Finished, IngestStage, StageCall, find_finished, run_stage
from ssl_backdoor.store import LocalStore
from ssl_backdoor.train.collectives import connect


def test_an_artifact_is_reused_from_the_moment_it_is_finished(tmp_path):
    source = ScenesSourceSpec(num_classes=2, train_per_class=1, test_per_class=1, side_px=16)
    call, store = StageCall(IngestStage(dataset=DatasetSpec(source=source)), source="scenes"), LocalStore(tmp_path)
    assert find_finished(call, store) is None
    made = run_stage(call, store)
    assert not made.reused
    assert find_finished(call, store) == run_stage(call, store) == Finished(made.ref, reused=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_batch_system_leaves_in_the_environment_decides_nothing(workers, tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere.example"}.items():
        monkeypatch.setenv(name, value)
    source = ScenesSourceSpec(num_classes=2, train_per_class=1, test_per_class=1, side_px=16)
    call, store = StageCall(IngestStage(dataset=DatasetSpec(source=source)), source="scenes"), LocalStore(tmp_path)
    made = run_stage(call, store, Resources(workers=workers))
    assert store.find("ingest", call.key) == made.ref


def test_a_training_of_one_replica_opens_no_process_group(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1" if name != "WORLD_SIZE" else "no number")
    assert connect(Resources(), torch.device("cpu")).count == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(SpecError, match=r"ask for 2 worker\(s\), but 1 process"):
        connect(Resources(workers=2), torch.device("cpu"))


def test_only_replicas_look_at_their_local_rank(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pick_device(Resources()) == torch.device("cuda", 0)
    assert pick_device(Resources(workers=2)) == torch.device("cuda", 1)
