"""What a preview says against what the ingest then does."""

import pytest
from picture_files import cats_and_dogs, picture, write_folder, write_tar

from ssl_backdoor.data.images import inspect
from ssl_backdoor.data.stored import open_dataset
from ssl_backdoor.errors import DataError, SpecError
from ssl_backdoor.estimate.preview import preview_artifact, preview_source, synthetic_preview
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec, ScenesSourceSpec
from ssl_backdoor.stages import IngestStage, StageCall, run_stage
from ssl_backdoor.store import LocalStore

SPECS = {
    "all": DatasetSpec(),
    "capped": DatasetSpec(max_train_per_class=3, max_test_per_class=1),
    "one class": DatasetSpec(classes=("dog",), keep_fraction=0.5),
    "scenes": DatasetSpec(source=ScenesSourceSpec(num_classes=2, train_per_class=5, test_per_class=3, side_px=16)),
}


def numbers(one):
    return (*one.counts, one.counts.num_test, one.counts.num_train)


@pytest.mark.parametrize("name", SPECS)
def test_it_counts_what_the_ingest_keeps(name, tmp_path):
    spec, data = SPECS[name], write_tar(tmp_path / "set.tar", cats_and_dogs(train=6, test=4))
    source = None if name == "scenes" else str(data)
    before = preview_source(spec, source)
    store = LocalStore(tmp_path / "store")
    ref = run_stage(StageCall(IngestStage(dataset=spec), data=source), store).ref
    assert numbers(before) == numbers(preview_artifact(store, ref))
    kept = open_dataset(store, ref).samples.to_pylist()
    assert before.counts.num_train == sum(row["split"] == "train" for row in kept)
    assert before.counts.num_test == sum(row["split"] == "test" for row in kept)
    assert len(before.images) == len(kept)
    assert {inspect(image, 10**6).width for image in before.images} == {16 if name == "scenes" else 12}


def test_images_without_a_class_are_trained_on_and_not_scored(tmp_path):
    data = write_folder(
        tmp_path / "set", {f"{split}/{i}.png": picture(i) for split in ("train", "test") for i in (0, 1)}
    )
    found = preview_source(DatasetSpec(), str(data)).counts
    assert (found, found.num_test, found.num_train) == (((), (), (), 2, 2), 0, 2)


def test_a_second_source_brings_the_test_images(tmp_path):
    train, test = (
        write_folder(tmp_path / name, cats_and_dogs(*sizes)) for name, sizes in (("a", (5, 2)), ("b", (1, 3)))
    )
    found = preview_source(DatasetSpec(test_source=FilesSourceSpec()), str(train), str(test)).counts
    assert (found.num_train, found.num_test) == (10, 6)


def test_what_an_ingest_would_refuse_is_refused(tmp_path):
    data = str(write_folder(tmp_path / "set", cats_and_dogs()))
    with pytest.raises(SpecError, match="no class 'bird'"):
        preview_source(DatasetSpec(classes=("bird",)), data)
    with pytest.raises(DataError, match="there is nothing at"):
        preview_source(DatasetSpec(), str(tmp_path / "nowhere"))


def test_synthetic_data_are_split_evenly_and_can_be_decoded():
    found = synthetic_preview(DatasetSpec(classes=("a", "b", "c"), frame_px=20), 10, 4)
    assert (found.counts.train_per_class, found.counts.test_per_class) == ((4, 3, 3), (2, 1, 1))
    assert inspect(found.images[0], 10**6)[1:] == (20, 20)
    assert synthetic_preview(DatasetSpec(), 25, 4).counts.num_train == 25
