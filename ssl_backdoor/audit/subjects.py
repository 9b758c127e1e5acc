"""What is audited, and what it is compared with: files looked at before they are loaded, encoders loaded apart."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_backdoor.audit.quarantine import Loaded, Refusal, load_apart
from ssl_backdoor.encoders import FrameSpec, load_encoder
from ssl_backdoor.errors import SpecError, UserError
from ssl_backdoor.specs import BackboneSpec
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from ssl_backdoor.train.checkpoint import backbone_spec

FROM_STORE = "store"
"""As a sibling: those that the store has of the same training under other seeds."""
_ARTIFACT = re.compile(r"(train|defend|tamper)/[0-9a-f]+")


class Subject(NamedTuple):
    """An encoder that was loaded."""

    name: str
    ref: ArtifactRef
    frame: FrameSpec
    backbone: BackboneSpec
    facts: Mapping[str, Any]


def file_facts(file: Path) -> dict[str, Any]:
    """Name, bytes, sha256 and format of a file of weights, of which nothing is executed."""
    with file.open("rb") as opened:
        start = opened.read(64)
        opened.seek(0)
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": digest, "format": _format(start)}


def _format(start: bytes) -> str:
    if start.startswith(b"PK\x03\x04"):
        return "torch (a zip with a pickle, of which plain tensors alone are read)"
    if start.startswith(b"\x80"):
        return "a bare pickle, which could run code when loaded"
    if len(start) > 8 and start[8:9] == b"{":
        return "safetensors"
    return "none that is known"


def load(
    text: str, said: Mapping[str, Any], store: ArtifactStore, scratch: Path, timeout_s: float
) -> Subject | Refusal:
    """The encoder ``text``: one of the store, or loaded in a process of its own.

    Raises:
        SpecError: it names nothing.
        UserError: an artifact of the store cannot be read.
    """
    if _ARTIFACT.fullmatch(text):
        encoder = load_encoder(text, store)
        if encoder.ref is None:
            raise SpecError(f"expected an artifact of {store.root}, found {text!r}")
        facts = {"feature_dim": encoder.feature_dim, "has_text": encoder.text is not None, "remarks": [],
                 "network": "an artifact of the store: safetensors alone"}  # fmt: skip
        return Subject(
            f"{encoder.ref.stage}/{encoder.ref.key[:12]}", encoder.ref, encoder.frame, encoder.backbone.spec, facts
        )
    scratch.mkdir()
    found = load_apart(text, said, store, scratch, timeout_s)
    if isinstance(found, Refusal):
        if found.kind == "mistake":
            raise SpecError(found.reason)
        return found
    return _subject(text, found, store)


def _subject(text: str, found: Loaded, store: ArtifactStore) -> Subject:
    spec = backbone_spec(store.fetch(found.ref, ["backbone.json"]))
    return Subject(text, found.ref, FrameSpec.model_validate(found.facts["frame"]), spec, found.facts)


def siblings(
    texts: Sequence[str],
    subject: Subject,
    said: Mapping[str, Any],
    store: ArtifactStore,
    scratch: Path,
    timeout_s: float,
) -> tuple[list[Subject], list[str]]:
    """The encoders ``texts`` that ``subject`` may be compared with, and a sentence on each that was refused.

    Raises:
        SpecError: one is of another architecture, is ``subject`` itself or stands twice.
    """
    found, refused, seen = [], [], {subject.ref.key: "the encoder under audit"}
    named = [one for text in texts for one in (_of_store(subject, store) if text == FROM_STORE else [text])]
    if FROM_STORE in texts and len(named) == len(texts) - texts.count(FROM_STORE):
        refused.append("the store has no clean encoder of the same training under another seed")
    for number, text in enumerate(named):
        one = load(text, said, store, scratch / f"sibling-{number}", timeout_s)
        if isinstance(one, Refusal):
            refused.append(f"sibling {text}: {one.reason}")
            continue
        if one.backbone != subject.backbone:
            raise SpecError(
                f"expected siblings of the same architecture and preprocessing, found {text}: sizes of triggers do not "
                "compare between networks; leave it out"
            )
        if (other := seen.get(one.ref.key)) is not None:
            raise SpecError(f"expected different encoders as siblings, found {text}, which is {other}; leave it out")
        seen[one.ref.key] = text
        found.append(one)
    return found, refused


def _of_store(subject: Subject, store: ArtifactStore) -> Iterator[str]:
    """Clean encoders of the same training and data under other seeds than the one that ``subject`` was made from."""
    manifest = store.manifest(subject.ref)
    parent = manifest
    while "train" not in parent.spec and (before := parent.inputs.get("model") or parent.inputs.get("suspect")):
        try:
            parent = store.manifest(store.ref("train", before))
        except UserError:
            return
    if "train" not in parent.spec:
        return
    for key in store.keys("train"):
        other = store.manifest(store.ref("train", key))
        is_same = other.spec.get("train") == parent.spec["train"] and other.spec.get("seed") != parent.spec.get("seed")
        if is_same and "poison" not in other.inputs and other.inputs.get("dataset") == parent.inputs.get("dataset"):
            yield f"train/{key}"
