"""What users get wrong: one clear sentence, exit code 2, nothing left behind."""

import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command_server import TINY, refused_input

pytestmark = pytest.mark.services
SETTINGS = ("--set", "dataset.classes=[]", "--set", "attack.target_class=cat", "--pairs", "1")
FEW = ("--set", "train.fit.batch_size=8", "--set", "defences=[]")


def jpeg(colour: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16), (colour % 256, 99, 7)).save(data, "JPEG")
    return data.getvalue()


def tree(folder: Path, per_class: int = 8) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(per_class):
                (folder / split / name / f"{index:04d}.jpg").write_bytes(jpeg(index * 7 + len(name)))
    return folder


def huge_png() -> bytes:
    """A valid header of 30,000 x 30,000 px and no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def missing_path(folder: Path) -> tuple[list[str], str]:
    return ["--data", str(folder / "nowhere")], "nowhere"


def empty_folder(folder: Path) -> tuple[list[str], str]:
    (folder / "empty").mkdir()
    return ["--data", str(folder / "empty")], "no images"


def truncated_tar(folder: Path) -> tuple[list[str], str]:
    with tarfile.open(folder / "whole.tar", "w") as archive:
        archive.add(tree(folder / "images"), "images")
    data = (folder / "whole.tar").read_bytes()
    (folder / "cut.tar").write_bytes(data[: len(data) // 2 + 100])
    return ["--data", str(folder / "cut.tar")], "cut.tar"


def escaping_member(folder: Path) -> tuple[list[str], str]:
    with tarfile.open(folder / "evil.tar", "w") as archive:
        member = tarfile.TarInfo("../../x")
        archive.addfile(member, io.BytesIO())
    return ["--data", str(folder / "evil.tar")], "../../x"


def one_byte_jpeg(folder: Path) -> tuple[list[str], str]:
    (tree(folder / "images") / "train/cat/bad.jpg").write_bytes(b"\xff")
    return ["--data", str(folder / "images")], "bad"


def huge_image(folder: Path) -> tuple[list[str], str]:
    (tree(folder / "images") / "train/cat/huge.png").write_bytes(huge_png())
    return ["--data", str(folder / "images")], "30000 x 30000"


def unknown_class(folder: Path) -> tuple[list[str], str]:
    return ["--data", str(tree(folder / "images")), "--set", 'dataset.classes=["cat","dgo"]'], "dog"


def unknown_target(folder: Path) -> tuple[list[str], str]:
    return ["--data", str(tree(folder / "images")), "--set", "attack.target_class=cta"], "cat"


def trigger_too_large(folder: Path) -> tuple[list[str], str]:
    return ["--data", str(tree(folder / "images")), "--set", "attack.trigger.size_px=40"], "40"


def fraction_above_one(folder: Path) -> tuple[list[str], str]:
    return ["--data", str(tree(folder / "images")), "--set", "attack.poison_fraction_of_target=1.5"], "1.5"


def label_without_images(folder: Path) -> tuple[list[str], str]:
    images = tree(folder / "images")
    shutil.rmtree(images / "train/cat")
    return ["--data", str(images)], "cat"


def unknown_field(folder: Path) -> tuple[list[str], str]:
    return ["--data", str(tree(folder / "images")), "--set", "train.fit.epoch=3"], "epochs"


def unwritable_store(folder: Path) -> tuple[list[str], str]:
    (folder / "file").write_text("not a folder")
    return ["--data", str(tree(folder / "images")), "--store", str(folder / "file" / "store")], "store"


def no_test_images(folder: Path) -> tuple[list[str], str]:
    shutil.rmtree(tree(folder / "images") / "test")
    return ["--data", str(folder / "images")], "have no test images"


def unlabelled_test_images(folder: Path) -> tuple[list[str], str]:
    tested = tree(folder / "images") / "test"
    for file in [*tested.glob("*/*.jpg")]:
        file.rename(tested / f"{file.parent.name}-{file.name}")
    return ["--data", str(folder / "images")], "none of the 16 test images has a class"


def target_not_tested(folder: Path) -> tuple[list[str], str]:
    shutil.rmtree(tree(folder / "images") / "test" / "cat")
    return ["--data", str(folder / "images")], "'cat' has none of the 8 test images"


def small_image(folder: Path) -> tuple[list[str], str]:
    Image.new("RGB", (16, 5)).save(tree(folder / "images") / "train/cat/small.png")
    setting = ["--set", "dataset.frame_px=0", "--set", "dataset.resident_px=16"]
    return ["--data", str(folder / "images"), *setting], "'train-cat-small' of 16 x 5 px"


def smaller_set_than_a_batch(folder: Path) -> tuple[list[str], str]:
    return ["--data", str(tree(folder / "images")), "--set", "train.fit.batch_size=17"], "needs 17 images, but there"


CASES = [
    missing_path,
    empty_folder,
    truncated_tar,
    escaping_member,
    one_byte_jpeg,
    huge_image,
    unknown_class,
    unknown_target,
    trigger_too_large,
    fraction_above_one,
    label_without_images,
    unknown_field,
    unwritable_store,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_one_sentence_and_nothing_left(lab, tmp_path, case):
    run, _ = lab
    arguments, expected = case(tmp_path)
    store = tmp_path / "store"
    outcome = run("train", "cifar10_byol", *SETTINGS, *FEW, "--store", store, *arguments)
    assert expected in refused_input(outcome, store)


UNFIT = [no_test_images, unlabelled_test_images, target_not_tested, small_image, smaller_set_than_a_batch]


@pytest.mark.parametrize("case", UNFIT, ids=lambda case: case.__name__)
def test_what_does_not_fit_the_plan_is_refused_by_ingest(lab, tmp_path, case):
    run, _ = lab
    arguments, expected = case(tmp_path)
    store = tmp_path / "store"
    outcome = run("ingest", "cifar10_byol", *SETTINGS, *FEW, "--store", store, *arguments)
    assert expected in refused_input(outcome, store)


def test_data_are_inspected_without_a_store(lab, tmp_path):
    run, _ = lab
    data, out = tree(tmp_path / "images"), tmp_path / "pages"
    (data / "train/cat/bad.jpg").write_bytes(b"no picture")
    outcome = run("inspect", data, "--out", out, "--json")
    assert outcome.code == 0, outcome
    found = json.loads(outcome.stdout)
    assert (found["classes"]["cat"], found["num_rejected"]) == ({"train": 9, "test": 8}, 1)
    assert [found["files"]["page"]] == [str(page) for page in out.glob("images-*/inspection.html")]
    for arguments, expected in (
        (("inspect", tmp_path / "nowhere"), "nowhere"),
        (("inspect", data, "--set", "train.fit.epochs=3"), "--set takes dataset.*"),
        (("inspect", data, "--test-data", tmp_path / "nowhere"), "nowhere"),
    ):
        assert expected in refused_input(run(*arguments, "--out", out), tmp_path / "store")


def test_full_disk(lab, tmp_path):
    run, _ = lab
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root; the store's own tests cover a full disk without it")
    try:
        outcome = run("ingest", "demo", *TINY, "--store", small / "store")
        left = [path.name for path in small.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert outcome.code == 2, outcome
    assert "full" in outcome.stderr or "space" in outcome.stderr
    assert left == []


def test_checkpoint_that_is_a_pickle(lab, experiment, tmp_path):
    run, folder = lab
    store = tmp_path / "store"
    for stage in ("ingest", "poison", "train"):
        shutil.copytree(folder / "home/store" / stage, store / stage)
    for file in store.glob("train/*/backbone.safetensors"):
        size = file.stat().st_size
        file.unlink()
        file.write_bytes(pickle.dumps({"weight": os.urandom(9)}).ljust(size, b"\0"))
    outcome = run("evaluate", "demo", *TINY, "--store", store, "--set", "defences=[]")
    assert outcome.code == 2, outcome
    (sentence,) = [line for line in outcome.stderr.splitlines() if line.startswith("ssl-backdoor: ")]
    assert "backbone.safetensors" in sentence
    assert not list(store.glob("evaluate/*"))


def test_usage_errors_name_the_choices(lab):
    run, _ = lab
    outcome = run("run", "cifar10_bjol")
    assert outcome.code == 2
    assert "cifar10_byol" in outcome.stderr
    outcome = run("run", "cifar10_byol")
    assert outcome.code == 2
    assert "--data" in outcome.stderr
    assert run("run", "demo", "--pairs", "0").code == 2
    assert run("run", "demo", "--pairs", "5").code == 2
    assert run("show", "train/0000").code == 2
