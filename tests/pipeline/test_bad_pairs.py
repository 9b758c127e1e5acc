"""What users get wrong with images and captions: one clear sentence, exit code 2, nothing left behind."""

import csv
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command_server import refused_input

pytestmark = pytest.mark.services
SOURCE_CAPTIONS = ("--set", 'dataset.captions={"kind":"source"}')
SETTINGS = ("--seeds", "1", "--pairs", "1", "--set", "attack.target_class=cat", "--set", "attack.num_poisons=4")
SETTINGS += ("--set", "train.fit.batch_size=8", "--set", "defences=[]")
Row = tuple[str, str, str, str]  # path, caption, label, split


def jpeg(index: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16), (index * 20 % 256, 99, index % 7)).save(data, "JPEG")
    return data.getvalue()


def rows(caption: str = "a photo of a {} on grass", count: int = 8) -> list[Row]:
    return [
        (f"{split}-{name}-{index}.jpg", caption.format(name), name, split)
        for split in ("train", "test")
        for name in ("cat", "dog")
        for index in range(count)
    ]


def table(folder: Path, lines: Iterable[Row], header: str = "filepath,caption,label,split") -> list[str]:
    file = folder / "pairs.csv"
    with file.open("w", newline="") as out:
        out.write(header + "\n")
        csv.writer(out).writerows(lines)
    for index, row in enumerate(rows()):
        (folder / row[0]).write_bytes(jpeg(index))
    return ["--data", str(file), *SOURCE_CAPTIONS]


def no_caption_of_the_target(folder: Path) -> tuple[list[str], list[str]]:
    lines = [(path, caption.replace("cat", "cats"), label, split) for path, caption, label, split in rows()]
    return table(folder, lines), ["'cat'", "cats"]


def more_poisons_than_images(folder: Path) -> tuple[list[str], list[str]]:
    return [*table(folder, rows()), "--set", "attack.num_poisons=9000"], ["9000", "8"]


def missing_column(folder: Path) -> tuple[list[str], list[str]]:
    return table(folder, rows(), "where,what,label,split"), ["where", "what", "path_column"]


def caption_of_a_megabyte(folder: Path) -> tuple[list[str], list[str]]:
    lines = rows()
    lines[3] = (lines[3][0], "cat " * 2**18, *lines[3][2:])
    return table(folder, lines), ["1 of 32", "characters", "max_caption_chars"]


def path_that_leads_out(folder: Path) -> tuple[list[str], list[str]]:
    lines = rows()
    lines[0] = ("../secret.jpg", *lines[0][1:])
    return table(folder, lines), ["../secret.jpg"]


def shard_without_its_images(folder: Path) -> tuple[list[str], list[str]]:
    with tarfile.open(folder / "train-000000.tar", "w") as shard:
        for index in range(20):
            members = [("txt", b"a photo of a cat")] + ([("jpg", jpeg(index))] if index % 2 else [])
            for suffix, data in members:
                member = tarfile.TarInfo(f"{index:06d}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return ["--data", str(folder / "train-000000.tar"), *SOURCE_CAPTIONS], ["10 of 20", "no image"]


def second_source_missing(folder: Path) -> tuple[list[str], list[str]]:
    return [*table(folder, rows()), "--set", 'dataset.test_source={"kind":"files"}'], ["--test-data", "test_source"]


def second_source_unasked(folder: Path) -> tuple[list[str], list[str]]:
    return [*table(folder, rows()), "--test-data", str(folder)], ["--test-data", "test_source"]


CASES = (
    no_caption_of_the_target,
    more_poisons_than_images,
    missing_column,
    caption_of_a_megabyte,
    path_that_leads_out,
    shard_without_its_images,
    second_source_missing,
    second_source_unasked,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_one_sentence_about_pairs(lab, tmp_path, case):
    run, _ = lab
    arguments, expected = case(tmp_path)
    store = tmp_path / "store"
    outcome = run("train", "carlini2022_fig2_backdoor", *SETTINGS, "--store", store, *arguments)
    sentence = refused_input(outcome, store)
    assert len(sentence) < 600
    assert [words for words in expected if words not in sentence] == [], sentence


def test_sizes_are_named(lab):
    run, _ = lab
    outcome = run("run", "demo", "--size", "paper")
    assert outcome.code == 2
    assert "single size" in outcome.stderr
    assert run("run", "carlini2022_fig2_targeted", "--size", "huge").code == 2
