"""What users of a deployment get wrong: one sentence on Prefect's page, no run that hangs, a worker that goes on.

Two doors. What the form's schema can tell Prefect's server answers at once, to a page and to `prefect deployment run`
alike, and no run is made. The rest ends a run as failed: a few in a process that the worker began, with a good run
behind them, and the others in a process that they share.
"""

import csv
import io
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from infra.stack import http
from tests.support.command_server import TINY_SETTINGS
from tests.support.seaweedfs import free_ports
from tests.support.shared_engine import run_all
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.services, pytest.mark.slow]
OWN = ["dataset.classes=[]", "attack.target_class=cat", "train.fit.batch_size=4", "defences=[]"]
GOOD = "nothing wrong"
OF_WORKER = ("a zip bomb", "an identity that only reads")
"""Refused by a process that the worker began; the others share one."""


class Refused(NamedTuple):
    """A run that must end as failed with a sentence that holds all ``words``."""

    parameters: Mapping[str, object]
    words: tuple[str, ...]
    environment: Mapping[str, str] = {}
    deployment: str = "experiment/recipe"


def demo(*words: str, settings: tuple[str, ...] = (), **parameters: object) -> Refused:
    return Refused({"settings": [*TINY_SETTINGS, *settings], **parameters}, words, deployment="experiment/demo")


def images(place: Path | str, *words: str) -> Refused:
    return Refused({"recipe": "cifar10_byol", "pairs": 1, "data": str(place), "settings": OWN}, words)


def pairs(place: Path, *words: str) -> Refused:
    source = 'dataset.source={"kind":"files","layout":"pairs"}'
    settings = [*OWN, source, 'dataset.captions={"kind":"source"}', "attack.num_poisons=4"]
    asked = {"recipe": "carlini2022_fig2_backdoor", "pairs": 1, "seeds": 1, "data": str(place), "settings": settings}
    return Refused(asked, words)


def jpeg(colour: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16), (colour % 256, 99, 7)).save(data, "JPEG")
    return data.getvalue()


def tree(folder: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for split in ("train", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for index in range(4):
                (folder / split / name / f"{index}.jpg").write_bytes(jpeg(index * 7 + len(name)))
    return folder


def packed(file: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w") as archive:
        archive.add(tree(file.with_suffix("")), "images")
        for member in members:
            archive.addfile(member, io.BytesIO())
    return file


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def cut(file: Path) -> Path:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2 + 100])
    return file


def zip_bomb(file: Path) -> Path:
    """300 MiB of zeros behind the name of the only image."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("train/cat/0.png", "w") as member:
        for _ in range(300):
            member.write(bytes(2**20))
    return file


def pixel_bomb(folder: Path) -> Path:
    """A valid header of 30,000 x 30,000 px and no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tree(folder) / "train/cat/huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return folder


def table(folder: Path, header: str = "filepath,caption,label,split", **changed: str | bytes) -> Path:
    """A table of pairs and its images; ``changed`` gives row 3 another path or caption."""
    folder.mkdir()
    file, rows = folder / "pairs.csv", io.StringIO()
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for index in range(4):
                path = f"{split}-{name}-{index}.jpg"
                (folder / path).write_bytes(jpeg(index))
                csv.writer(rows).writerow([path, f"a photo of a {name}", name, split])
    lines = [header.encode(), *rows.getvalue().encode().splitlines()]
    path, caption, rest = lines[4].split(b",", 2)
    given = {name: text if isinstance(text, bytes) else text.encode() for name, text in changed.items()}
    lines[4] = b",".join([given.get("path", path), given.get("caption", caption), rest])
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def only(file: Path, content: bytes) -> Path:
    """The folder of a single file."""
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file.parent


def made(file: Path, make: Callable[[Path], object]) -> Path:
    make(file)
    return file


def specs(folder: Path) -> dict[str, Refused]:
    poisonous = only(folder / "trigger" / "weights.pkl", pickle.dumps({"weight": 1})) / "weights.pkl"
    trigger = 'attack.trigger={{"kind":"image","file":"{}","size_px":8}}'
    larger = 'attack.trigger={"kind":"grid","size_px":900}'
    byol = {"method": {"kind": "byol"}, "fit": {"batch_size": 7, "bn_groups": 2}}
    unseen = {"methods": "byol", "settings": ("attack.trigger.seed=987",)}  # trainings that no other test has left
    return {
        "an attack without its kind": demo("attack", "kind is missing", attack={"target_class": "cat"}),
        "groups that do not divide": demo("train", "batch_size 7", train=byol),
        "a field nobody knows": demo("epohcs", settings=("train.fit.epohcs=1",)),
        "text for a number": demo("many", settings=("train.fit.epochs=many",)),
        "a number without end": demo("finite", settings=("train.fit.optimizer.lr=Infinity",)),
        "no number": demo("finite", settings=("train.fit.optimizer.lr=NaN",)),
        "a number of 5,000 digits": demo("train.fit.epochs", settings=(f"train.fit.epochs=1{'0' * 5000}",)),
        "brackets without end": demo("train.fit.epochs", settings=(f"train.fit.epochs={'[' * 100_000}",)),
        "the worker's own files": demo("only the command line", settings=("dataset.classes=@/etc/passwd",)),
        "a share above one": demo("1.5", settings=("attack.poison_fraction_of_target=1.5",)),
        "a trigger larger than the image": demo("900x900", "is larger than", settings=(larger,)),
        "a batch larger than the data": demo(
            "100000", "200", methods="byol", settings=("train.fit.batch_size=100000",)
        ),
        "a class nobody knows": demo("axolotl", settings=("attack.target_class=axolotl",)),
        "more than a layer may have": demo(
            "embedding_dim", "16384", methods="byol", settings=("train.method.embedding_dim=1000000000000",)
        ),
        "pairs that there are not": demo("demo has 1 pair(s)", pairs=2),
        "a size that there is not": demo("demo has a single size", size="paper"),
        "methods that there are not": demo("found msf", methods="msf"),
        "data for a recipe that draws its own": demo("leave --data out", data=str(folder)),
        "no data": Refused({}, ("saha2022_table1 needs --data PATH",), deployment="matrix/recipe"),
        "a pickle for a trigger": demo("weights.pkl", settings=(trigger.format(poisonous),)),
        "a device for a trigger": demo("/dev/zero", settings=(trigger.format("/dev/zero"),)),
        "more threads than CPUs": demo("1024 threads", "CPUs", **unseen, resources={"threads": 1024}),
        "more workers than CPUs": demo("64 workers", **unseen, resources={"workers": 64}),
    }


def data(folder: Path) -> dict[str, Refused]:
    trap = packed(folder / "trap.tar", link("images/out", "/etc"))
    bad_name = os.fsdecode(b"train-\xff\xfe.jpg")
    return {
        "no such path": images("/no/such/folder", "/no/such/folder"),
        "a path that no file can have": images("/x" * 5000, "File name too long"),
        "an empty folder": images(made(folder / "empty", Path.mkdir), "no images found"),
        "no image in it": images(only(folder / "texts" / "notes.txt", b"cat"), "no images found"),
        "files that only look like images": images(only(folder / "fake/train/cat/0.jpg", b"cat").parents[1], "only 1;"),
        "a tar cut short": images(cut(packed(folder / "cut.tar")), "cut.tar is truncated"),
        "a tar that climbs out": images(packed(folder / "up.tar", tarfile.TarInfo("../x")), "'../x'"),
        "a tar with a link": images(trap, "link 'images/out'"),
        "a zip bomb": images(zip_bomb(folder / "bomb.zip"), "bomb.zip", "more than 100 times its size"),
        "a pixel bomb": images(pixel_bomb(folder / "pixels"), "30000 x 30000"),
        "a single class": images(tree(folder / "dogs", ("dog",)), "'cat'"),
        "a file that is no archive": images(
            only(folder / "no.tar.gz" / "no.tar.gz", b"cat") / "no.tar.gz", "no.tar.gz"
        ),
        "a pipe": images(made(folder / "pipe", os.mkfifo), "neither a file nor a folder"),
        "shards without number": images("/x/{0..999999}{0..999999}.tar", "more than"),
        "a folder for a table": pairs(tree(folder / "folder"), "one CSV"),
        "a table without its columns": pairs(table(folder / "columns", "where,what,label,split"), "path_column"),
        "a table that breaks off": pairs(table(folder / "broken", path='"train'), '"train', "no such file"),
        "a caption without end": pairs(table(folder / "long", caption="cat " * 2**18), "max_caption_chars"),
        "a path that is no text": pairs(table(folder / "bytes", path=os.fsencode(bad_name)), "no such file"),
        "a path that climbs out": pairs(table(folder / "climb", path="../secret.jpg"), "../secret.jpg"),
    }


def stores(folder: Path, stack) -> dict[str, Refused]:
    profiles, secrets = folder / "profiles", stack.config.secrets
    profiles.touch(mode=0o600)
    for name, secret in (("reader", secrets["s3_reader_secret_key"]), ("wrong", "x" * 40)):
        with profiles.open("a") as file:
            file.write(
                f"[{name}]\naws_access_key_id={secrets['s3_reader_access_key']}\naws_secret_access_key={secret}\n"
            )

    def away(*words: str, **environment: str) -> Refused:
        return demo(*words)._replace(environment=environment)

    def profile(name: str) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
        return {**keys, "AWS_SHARED_CREDENTIALS_FILE": str(profiles), "AWS_PROFILE": name}

    (nobody,) = free_ports(1)
    file = only(folder / "file" / "file", b"") / "file"
    return {
        "another scheme": demo("file:// or s3://", store="ftp://artifacts"),
        "no bucket of that name": demo("no-such-bucket", store="s3://no-such-bucket/x"),
        "a file for a folder": demo("a file stands", store=str(file / "store")),
        "an identity that only reads": away("refuses these credentials (AccessDenied)", **profile("reader")),
        "a wrong secret": away("refuses these credentials (SignatureDoesNotMatch)", **profile("wrong")),
        "nobody at the endpoint": away("cannot reach", AWS_ENDPOINT_URL=f"http://127.0.0.1:{nobody}"),
        "an endpoint that is no S3": away("no object store", AWS_ENDPOINT_URL=stack.config.url("mlflow")),
    }


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"pairs": -1}, "minimum"),
        ({"pairs": "two"}, "integer"),
        ({"seeds": 10**9}, "maximum"),
        ({"recipe": "dmeo"}, "recipe"),
        ({"until": "publish"}, "until"),
        ({"resources": {"workers": 0}}, "resources.workers"),
        ({"resources": {"threads": 10**9}}, "resources.threads"),
        ({"train": {"method": {"kind": "byol"}, "fit": {"epochs": 0}}}, "train.fit.epochs"),
        ({"attack": {"kind": "saha"}}, "attack"),
        ({"evaluation": {"label_fractions": ["half"]}}, "evaluation.label_fractions"),
        ({"data": "/data/\0"}, "data"),
        ({"settings": ["variant=\0"]}, "settings"),
        ({"store": "s3://key:secret@artifacts/lab"}, "store"),
        ({"sizes": "mini"}, "('sizes' was unexpected)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_form_can_tell_is_refused_at_the_door(stack, parameters, words):
    status, answer = stack.ask("experiment/demo", parameters)
    told = http.parse_json(answer)["detail"]
    assert status == 409
    assert told.startswith("Error creating flow run: Validation failed")
    assert words in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("parameters", "words"),
    [({"pairs": -1}, "-1 is less than the minimum of 0"), ({"sizes": "mini"}, "not found on the deployment: 'sizes'")],
    ids=["value", "name"],
)
def test_a_shell_is_told_the_same_and_fails(stack, parameters, words):
    done = stack.deploy("experiment/demo", **parameters)
    assert done.returncode == 1
    assert words in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr


def test_a_name_that_was_let_through_ends_its_run_with_one_sentence(stack):
    """As one in a schedule is, which Prefect's server compares with no schema."""
    place = f"deployments/{stack.api('deployments/name/experiment/demo')['id']}/create_flow_run"
    run = stack.api(place, {"parameters": {"sizes": "mini"}, "enforce_parameter_schema": False})["id"]

    def state() -> dict:
        return stack.api(f"flow_runs/{run}")["state"]

    wait_until(lambda: state()["type"] == "FAILED", timeout_s=400, what="the sentence")
    assert problem(Refused({}, ("no parameter is named sizes; expected some of recipe, size",)), state()) == ""


@pytest.fixture(scope="module")
def refused(stack, tmp_path_factory) -> dict[str, tuple[Refused, dict]]:
    """Every case with its flow run, ended; and behind the worker's a run that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("refused")
    cases = {**specs(folder), **data(folder), **stores(folder, stack)}
    shared = {
        stack.queue(case.deployment, case.parameters, case.environment, state={"type": "PENDING"}): name
        for name, case in cases.items()
        if name not in OF_WORKER
    }
    cases[GOOD] = demo(until="ingest")
    runs = {
        stack.queue(cases[name].deployment, cases[name].parameters, cases[name].environment): name
        for name in (*OF_WORKER, GOOD)
    }
    run_all(stack, {run: cases[name].environment for run, name in shared.items()}, timeout_s=800)
    runs |= shared
    found = stack.ended(*runs, timeout_s=800)
    return {runs[run["id"]]: (cases[runs[run["id"]]], run) for run in found}


def problem(case: Refused, state: Mapping[str, str]) -> str:
    """What is wrong with the end of a run that was to be refused; empty where nothing is."""
    told = state["message"] or ""
    absent = [words for words in case.words if words not in told]
    is_sentence = len(told.splitlines()) == 1 and len(told) < 800 and "Traceback" not in told
    return "" if state["type"] == "FAILED" and is_sentence and not absent else f"{state['type']}, {absent}: {told}"


def test_what_only_the_flow_finds_ends_it_with_one_sentence(refused):
    wrong = {name: problem(case, run["state"]) for name, (case, run) in refused.items() if name != GOOD}
    assert len(wrong) >= 32
    assert {name: told for name, told in wrong.items() if told} == {}


def test_the_worker_goes_on(stack, refused):
    state = refused[GOOD][1]["state"]
    assert (state["type"], state["message"]) == ("COMPLETED", "done up to ingest")
    assert stack("status")[0] == 0
