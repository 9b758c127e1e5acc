"""One place decides whether a stage's artifact is reused, what its identity is, and who commits it."""

from dataclasses import replace

import pytest
import torch

from ssl_backdoor.data.images import encode_png
from ssl_backdoor.data.sources import source_digest
from ssl_backdoor.device import pick_device
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.triggers.picture import ImageTriggerSpec
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec, Resources, ScenesSourceSpec
from ssl_backdoor.stages import Finished, IngestStage, PoisonStage, StageCall, find_finished, run_stage
from ssl_backdoor.store import LocalStore
from ssl_backdoor.train.collectives import connect

FILES = IngestStage(dataset=DatasetSpec())
SCENES = IngestStage(
    dataset=DatasetSpec(source=ScenesSourceSpec(num_classes=2, train_per_class=1, test_per_class=1, side_px=16))
)


def pictures(folder, *classes):
    for name in classes:
        (folder / "train" / name).mkdir(parents=True)
        (folder / "test" / name).mkdir(parents=True)
        pixels = stream(0, folder.name, name).integers(0, 256, (8, 8, 3), dtype="uint8")
        for split in ("train", "test"):
            (folder / split / name / "0.png").write_bytes(encode_png(pixels))
    return str(folder)


def test_an_artifact_is_reused_from_the_moment_it_is_finished(tmp_path):
    call, store = StageCall(SCENES), LocalStore(tmp_path)
    assert call.key == StageCall(SCENES, source="scenes").key
    assert find_finished(call, store) is None
    made = run_stage(call, store)
    assert not made.reused
    assert find_finished(call, store) == run_stage(call, store) == Finished(made.ref, reused=True)
    assert store.manifest(made.ref).inputs == {"source": "scenes"}


def test_a_second_folder_never_gets_the_artifact_of_the_first(tmp_path):
    first, second = pictures(tmp_path / "first", "cat", "dog"), pictures(tmp_path / "second", "cat", "cow")
    store = LocalStore(tmp_path / "store")
    call = StageCall(FILES, data=first)
    made = run_stage(call, store)
    assert StageCall(FILES, source=source_digest(FILES.dataset, first), data=first).key == call.key
    other = run_stage(replace(call, data=second), store)
    assert (made.reused, other.reused) == (False, False)
    assert [store.manifest(one.ref).summary["classes"] for one in (made, other)] == [["cat", "dog"], ["cat", "cow"]]
    assert run_stage(StageCall(FILES, data=first), store) == Finished(made.ref, reused=True)
    (tmp_path / "first" / "train" / "cat" / "1.png").write_bytes((tmp_path / "first/train/cat/0.png").read_bytes())
    assert store.manifest(run_stage(StageCall(FILES, data=first), store).ref).summary["num_train"] == 3


def test_other_test_data_are_another_artifact(tmp_path):
    stage = IngestStage(dataset=DatasetSpec(test_source=FilesSourceSpec()))
    data, *tests = (pictures(tmp_path / name, "cat", "dog") for name in ("data", "one", "two"))
    assert len({StageCall(stage, data=data, test_data=test).key for test in tests}) == 2
    with pytest.raises(SpecError, match="second, labelled source"):
        StageCall(stage, data=data).key  # noqa: B018


@pytest.mark.parametrize("source", ["scenes", "mine", "0" * 63, "0" * 65, "G" * 64])
def test_what_is_no_digest_of_the_data_is_refused(source, tmp_path):
    call = StageCall(FILES, source=source, data=pictures(tmp_path / "set", "cat"))
    with pytest.raises(SpecError, match=r"expected the identity of the data .*leave source out"):
        run_stage(call, LocalStore(tmp_path / "store"))


def test_files_that_nobody_named_are_refused():
    with pytest.raises(DataError, match="needs images of yours"):
        StageCall(FILES).key  # noqa: B018


def test_another_picture_as_trigger_is_another_artifact(tmp_path):
    """Of an attack in a notebook: the file's content is in the key, not its name."""
    file, keys = tmp_path / "patch.png", set[str]()
    for seed in range(2):
        file.write_bytes(encode_png(stream(seed, "patch").integers(0, 256, (8, 8, 3), dtype="uint8")))
        attack = Saha2022TargetedSpec(trigger=ImageTriggerSpec(file=str(file), size_px=4), target_class="cat")
        keys |= {StageCall(PoisonStage(attack=attack, seed=0)).key for _ in range(2)}
    assert len(keys) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_batch_system_leaves_in_the_environment_decides_nothing(workers, tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere.example"}.items():
        monkeypatch.setenv(name, value)
    call, store = StageCall(SCENES), LocalStore(tmp_path)
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
