"""What is refused, and what is remarked, before anything is trained: a table of small datasets and plans."""

import pyarrow as pa
import pytest

from flows.pipeline import check_data, check_specs, plan_stages
from flows.plan import plan
from ssl_backdoor.data.counts import Counts, Sized, measure
from ssl_backdoor.data.images import encode_png
from ssl_backdoor.data.sources import source_digest
from ssl_backdoor.defences.compress import CompressSpec
from ssl_backdoor.detection.local_density import LocalDensitySpec
from ssl_backdoor.errors import SpecError, UserError
from ssl_backdoor.poison.attacks.carlini2022 import Carlini2022TargetedSpec
from ssl_backdoor.poison.attacks.saha2022 import Saha2022TargetedSpec
from ssl_backdoor.poison.triggers.grid import GridTriggerSpec
from ssl_backdoor.poison.triggers.picture import ImageTriggerSpec
from ssl_backdoor.preflight import Known, check, known_from_artifact
from ssl_backdoor.seeds import stream
from ssl_backdoor.specs import (
    BYOLSpec,
    CLIPSpec,
    DatasetSpec,
    EvaluationSpec,
    FitSpec,
    OpenCLIPSpec,
    TargetsSpec,
    TrainSpec,
    ViewsSpec,
)
from ssl_backdoor.stages import (
    DefendStage,
    EvaluateStage,
    FilterStage,
    IngestStage,
    PoisonStage,
    StageCall,
    StageSpec,
    TrainStage,
    run_stage,
)
from ssl_backdoor.store import LocalStore
from ssl_backdoor.tables import SAMPLES
from tasks.planner import Sources

COUNTS = Counts(("cat", "dog"), (100, 100), (10, 10), 0, 0)
FRAMED, AS_FOUND = DatasetSpec(frame_px=16), DatasetSpec()
GRID = GridTriggerSpec(size_px=6)
FIT = FitSpec(batch_size=64, views=ViewsSpec(size_px=16))


def evaluate(target_class="cat", trigger=GRID, **fields) -> StageSpec:
    return EvaluateStage(evaluation=EvaluationSpec(**fields), trigger=trigger, target_class=target_class, seed=0)


def poison(target_class="cat", trigger=GRID) -> StageSpec:
    return PoisonStage(attack=Saha2022TargetedSpec(trigger=trigger, target_class=target_class), seed=0)


def train(is_clip=False, **fields) -> StageSpec:
    fit = FIT.model_copy(update=fields)
    spec = (
        TrainSpec(method=CLIPSpec(), backbone=OpenCLIPSpec(), fit=fit)
        if is_clip
        else TrainSpec(fit=fit, method=BYOLSpec())
    )
    return TrainStage(train=spec, seed=0)


def samples(*rows) -> pa.Table:
    """Of (key, split, label, width, height, caption)."""
    filled = [(*row[:3], row[5] if len(row) > 5 else None, *row[3:5], "s.tar", 0, 1, "0") for row in rows]
    columns = [pa.array(values, kind) for values, kind in zip(zip(*filled, strict=True), SAMPLES.types, strict=True)]
    return pa.table(columns, schema=SAMPLES)


def ingested(*rows, spec=AS_FOUND) -> Known:
    found = measure(samples(*rows), ("cat", "dog"))
    return Known(spec, found.counts, found)


TINY = (
    ("tiny", "train", 0, 4, 9, "a cat"),
    ("large", "train", 1, 20, 30),
    ("dog", "train", 1, 12, 12),
    ("seen", "test", 0, 8, 8),
    ("heard", "test", 1, 8, 8),
)
EVEN = tuple((name, split, label, 8, 8, "a pet") for name, split, label, *_ in TINY)


def remarks_of(spec: StageSpec, known: Known) -> list[str]:
    store = LocalStore.__new__(LocalStore)
    store.root = "file:///nowhere"
    ref = store.ref("ingest", "a" * 64)
    call = StageCall(spec, {"dataset": ref}, title="stage 7")
    return check({store.ref(call.stage, "b" * 64): call}, {ref: known})


@pytest.mark.parametrize(
    ("spec", "known", "words"),
    [
        (evaluate(probes=()), Known(FRAMED), "stage 7: evaluation.probes is empty"),
        (evaluate(label_fractions=()), Known(FRAMED), "label_fractions is empty"),
        (evaluate(trigger=GridTriggerSpec(size_px=17)), Known(FRAMED), "trigger does not fit the evaluated frame"),
        (evaluate(crop_px=20), Known(FRAMED), "crop_px 20 is larger than the images, whose shorter side is 16"),
        (evaluate(crop_px=5), Known(FRAMED), "trigger of 6x6 px is larger than the image of 5x5"),
        (evaluate(resize_px=4), Known(DatasetSpec(resident_px=16)), "trigger of 6x6 px is larger"),
        (poison(trigger=GridTriggerSpec(size_px=17)), Known(FRAMED), "does not fit the stored frame"),
        (evaluate(), Known(FRAMED, COUNTS._replace(test_per_class=(0, 0))), "have no test images"),
        (
            evaluate(),
            Known(FRAMED, COUNTS._replace(test_per_class=(0, 0), num_unlabelled_test=50)),
            "none of the 50 test images has a class",
        ),
        (evaluate(), Known(FRAMED, COUNTS._replace(test_per_class=(0, 9))), "'cat' has none of the 9 test images"),
        (evaluate(), Known(FRAMED, COUNTS._replace(test_per_class=(9, 0))), "all 9 test images are of the target"),
        (evaluate("cta"), Known(FRAMED, COUNTS), "did you mean cat"),
        (evaluate(), Known(FRAMED, COUNTS._replace(train_per_class=(100, 0))), "but 1 have labelled training"),
        (evaluate(""), Known(FRAMED, Counts(("ds",), (90,), (9,), 0, 0)), "tell classes apart, but 1"),
        (poison("cta"), Known(FRAMED, COUNTS), "did you mean cat"),
        (poison(), Known(FRAMED, COUNTS._replace(train_per_class=(0, 9))), "'cat' has no training images to poison"),
        (
            PoisonStage(attack=Carlini2022TargetedSpec(targets=TargetsSpec(num_targets=30)), seed=0),
            Known(FRAMED, COUNTS),
            "asks for 30 labelled test images, but there are 20",
        ),
        (train(batch_size=256), Known(FRAMED, COUNTS), "one batch needs 256 images, but there are only 200"),
        (
            DefendStage(defence=CompressSpec(trusted_fraction=0.1, fit=FIT), seed=0),
            Known(FRAMED, COUNTS),
            "needs 64 trusted images, but trusted_fraction 0.1 gives 20",
        ),
        (poison(), ingested(*TINY), "training image 'tiny' of 4 x 9 px: the trigger of 6x6"),
        (poison("dog", trigger=GridTriggerSpec(size_px=13)), ingested(*TINY), "training image 'dog' of 12 x 12"),
        (train(batch_size=2), ingested(*TINY), "'tiny' has 4 x 9 px and 'large' has 20 x 30 px: set dataset.resident"),
        (evaluate(), ingested(*EVEN[:4], ("heard", "test", 1, 8, 9)), "'seen' has 8 x 8 px and 'heard' has 8 x 9"),
        (evaluate(trigger=GridTriggerSpec(size_px=9)), ingested(*EVEN), "trigger of 9x9 px is larger"),
        (
            train(is_clip=True, batch_size=2),
            ingested(*TINY, spec=FRAMED),
            "learns from captions, but 2 of 3 training images have none",
        ),
    ],
)
def test_what_would_fail_is_refused(spec, known, words):
    with pytest.raises(UserError) as caught:
        remarks_of(spec, known)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "known", "words"),
    [
        (train(views=ViewsSpec(size_px=64)), Known(FRAMED), ["views of 64 px are enlarged from images of 16 px"]),
        (
            evaluate(probes=("knn",)),
            Known(FRAMED, COUNTS._replace(train_per_class=(100, 7))),
            ["knn asks 20 neighbours, but class 'dog' has 7 training images"],
        ),
        (
            evaluate(probes=("linear",), label_fractions=(0.1, 0.01)),
            Known(FRAMED, COUNTS._replace(train_per_class=(30, 100))),
            ["label fraction 0.01: class 'cat' has 30 training images, of which one is labelled, 0.033 of them"],
        ),
        (
            evaluate("dog"),
            Known(FRAMED, Counts(("cat", "cow", "dog"), (500, 500, 500), (9, 0, 9), 0, 0)),
            ["1 ('cow') of 3 classes without test images"],
        ),
        (evaluate(probes=("zero_shot",)), Known(FRAMED, COUNTS._replace(train_per_class=(0, 0))), []),
        (evaluate(probes=("linear",), label_fractions=(1.0,)), ingested(*EVEN), []),
        (poison(trigger=GridTriggerSpec(size_frac=0.4)), ingested(*TINY), []),
        (poison("dog"), ingested(*TINY), []),
        (train(is_clip=True, batch_size=2), ingested(*EVEN), ["views of 16 px are enlarged from images of 8 px"]),
        (poison(trigger=ImageTriggerSpec(file="gone.png", sha256="0" * 64, size_px=16)), Known(FRAMED, COUNTS), []),
    ],
)
def test_what_gives_weak_numbers_is_remarked(spec, known, words):
    found = remarks_of(spec, known)
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_the_smallest_image_of_each_class_is_found_across_blocks(monkeypatch):
    monkeypatch.setattr("ssl_backdoor.data.dataset.BLOCK_ROWS", 2)
    found = measure(samples(*TINY, ("dot", "train", 1, 3, 50), ("lost", "train", -1, 1, 1)), ("cat", "dog"))
    assert found.smallest == {
        ("train", 0): Sized("tiny", 4, 9),
        ("train", 1): Sized("dot", 3, 50),
        ("train", -1): Sized("lost", 1, 1),
        ("test", 0): Sized("seen", 8, 8),
        ("test", 1): Sized("heard", 8, 8),
    }
    assert found.unlike == {"train": (Sized("tiny", 4, 9), Sized("large", 20, 30))}
    assert found.counts == Counts(("cat", "dog"), (1, 3), (1, 1), 1, 0)
    assert found.num_uncaptioned == 4


def folder(place, *names):
    for index, name in enumerate(names):
        (file := place / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(stream(index, "picture").integers(0, 256, (8, 8, 3), dtype="uint8")))
    return str(place)


def test_a_listing_is_refused_before_an_image_is_decoded(tmp_path):
    data, seen = folder(tmp_path / "set", "train/cat/0.png", "train/dog/0.png", "val/0.png"), []
    (tmp_path / "set" / "train" / "cat" / "1.png").write_bytes(b"no picture")

    def refuse(counts):
        seen.append(counts)
        raise SpecError("not these")

    store = LocalStore(tmp_path / "store")
    with pytest.raises(SpecError, match="not these"):
        run_stage(StageCall(IngestStage(dataset=AS_FOUND), data=data, check=refuse), store)
    assert seen == [Counts(("cat", "dog"), (2, 1), (0, 0), 0, 1)]
    assert not store.keys("ingest")


def test_of_an_artifact_everything_is_known(tmp_path):
    data, store = folder(tmp_path / "set", "train/cat/0.png", "test/cat/0.png"), LocalStore(tmp_path / "store")
    ref = run_stage(StageCall(IngestStage(dataset=AS_FOUND), data=data), store).ref
    known = known_from_artifact(store, ref)
    assert known.counts == Counts(("cat",), (1,), (1,), 0, 0)
    assert known.measured.smallest["train", 0] == Sized("train-cat-0", 8, 8)
    assert (known.held_px, known.spec) == (8, AS_FOUND)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("evaluation.probes=[]", "evaluation.probes is empty"),
        ("evaluation.label_fractions=[]", "label_fractions is empty"),
        ("attack.trigger.size_px=20", "larger than the image of 16x16"),
    ],
)
def test_a_run_that_cannot_be_meant_so_is_refused_before_the_data_are_looked_at(setting, words, tmp_path):
    store, sources = LocalStore(tmp_path), Sources(data=str(tmp_path / "nowhere"))
    check_specs(plan("cifar10_byol", pairs=1, has_data=True), store, sources)
    with pytest.raises(SpecError, match=words):
        check_specs(plan("cifar10_byol", pairs=1, has_data=True, settings=[setting]), store, sources)


def test_every_stage_that_is_planned_is_checked(tmp_path):
    """Of the whole recipe: the defence's batch is seen although nothing is wrong with what comes before it."""
    report = plan("cifar10_byol", pairs=1, has_data=True)
    calls = plan_stages(report, LocalStore(tmp_path), lambda *_: "0" * 64)
    (ref,) = {call.inputs["dataset"] for call in calls.values() if "dataset" in call.inputs}
    images = report.runs[0].dataset
    assert check(calls, {ref: Known(images, Counts(images.classes, (60,) * 5, (10,) * 5, 0, 0))}) != []
    with pytest.raises(SpecError, match="repair clean-trained"):
        check(calls, {ref: Known(images, Counts(images.classes, (30,) * 5, (10,) * 5, 0, 0))})


@pytest.mark.parametrize(("budget", "is_refused"), [(0.6, False), (0.7, True)])
def test_a_removal_that_leaves_less_than_a_batch_is_refused(budget, is_refused):
    store = LocalStore.__new__(LocalStore)
    store.root = "file:///nowhere"
    images, judged, trained = (
        store.ref(stage, letter * 64) for stage, letter in zip(("ingest", "filter", "train"), "abc", strict=True)
    )
    calls = {
        judged: StageCall(FilterStage(defence=LocalDensitySpec(budget=budget), seed=0), {"dataset": images}),
        trained: StageCall(train(), {"dataset": images, "filter": judged}, title="train it"),
    }
    if not is_refused:
        assert check(calls, {images: Known(FRAMED, COUNTS)}) == []
        return
    with pytest.raises(
        SpecError, match="train it: the filter local_density may leave out 140 of 200 training images, and one"
    ):
        check(calls, {images: Known(FRAMED, COUNTS)})


def test_a_class_that_is_not_there_is_refused_before_anything_starts(tmp_path, monkeypatch):
    """By the names of the data, and by the artifact once they are ingested: then the data are not looked at."""
    small = [f"dataset.source.{name}" for name in ("train_per_class=8", "test_per_class=4", "side_px=16")]
    settings = [*small, "train.fit.batch_size=8", "defences=[]"]
    store = LocalStore(tmp_path / "store")

    def calls(*more):
        return plan_stages(plan("demo", methods="byol", settings=[*settings, *more]), store, source_digest)

    check_data(calls(), store)
    unknown = calls("attack.target_class=crss")
    with pytest.raises(SpecError, match="'crss' is not one of the 5 classes: did you mean cross"):
        check_data(unknown, store)
    assert not list((tmp_path / "store").rglob("manifest.json"))
    run_stage(next(call for call in unknown.values() if call.stage == "ingest"), store)
    monkeypatch.setattr("flows.pipeline.check_listing", None)
    check_data(calls(), store)
    with pytest.raises(SpecError, match="'crss' is not one of the 5 classes"):
        check_data(unknown, store)
