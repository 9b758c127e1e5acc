"""``ssl-backdoor audit``: what can be said of an encoder that somebody else made, on one page.

It runs in this process and its children, without Prefect and Ray; every stage is kept in the store and reused.
"""

import argparse
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flows.commands.encoder import trigger_of
from flows.terminal.console import show_progress
from ssl_backdoor.audit.card import report_card
from ssl_backdoor.audit.data import AskedData, audit_data
from ssl_backdoor.audit.encoder import Asked, audit_encoder
from ssl_backdoor.errors import translate_os_errors
from ssl_backdoor.report.audit import write_encoder_audit
from ssl_backdoor.report.audit_data import card_lines, data_lines, write_card, write_data_audit
from ssl_backdoor.report.inspection import as_json
from ssl_backdoor.store import ArtifactStore, open_store


def audit(options: argparse.Namespace, store_uri: str, out: Path) -> dict[str, Any]:
    """What the command hands back, as JSON data; ``text`` are the lines for people.

    Raises:
        UserError: an option, an encoder or the images cannot be used.
    """
    store = open_store(store_uri)
    store.check()
    return {"card": _card, "data": _data, "encoder": _encoder}[options.what](options, store, out)


def _card(options: argparse.Namespace, store: ArtifactStore, out: Path) -> dict[str, Any]:
    folder = _folder(out, "card", [store.root, options.rate])
    with show_progress() as listen:
        found = report_card(store, 60 * options.budget, options.rate, partial(listen, "report card"))
    lines = card_lines(found)
    with translate_os_errors(f"the folder {folder}"):
        files = write_card(found | {"name": "The auditor's report card"}, lines, folder)
    ends = [f"{what}: {place}" for what, place in files.items()]
    return found | {"files": files, "store": store.root, "text": [*lines, *ends]}


def _data(options: argparse.Namespace, store: ArtifactStore, out: Path) -> dict[str, Any]:
    said = {"size_px": options.image_size} if options.image_size else {}
    asked = AskedData(options.data, options.encoder, options.trusted, options.rate, options.seed, said)
    folder = _folder(out, Path(asked.data).name, [str(Path(asked.data).absolute()), asked.encoder, asked.trusted])
    with tempfile.TemporaryDirectory(prefix="ssl-backdoor-audit-") as scratch, show_progress() as listen:
        found = audit_data(asked, store, Path(scratch), partial(listen, "audit"))
    with translate_os_errors(f"the folder {folder}"):
        facts = found.facts | {"name": options.data}
        files = write_data_audit(facts, as_json(found.inspection), found.scores, found.shown, folder)
    ends = [f"left out: {one}" for one in facts["left_out"]] + [f"{what}: {place}" for what, place in files.items()]
    return facts | {"files": files, "store": store.root, "text": [*data_lines(facts), *ends]}


def _encoder(options: argparse.Namespace, store: ArtifactStore, out: Path) -> dict[str, Any]:
    asked = Asked(
        encoder=options.encoder,
        images=options.images,
        siblings=tuple(options.siblings),
        classes=tuple(options.classes),
        trigger=trigger_of(options.trigger, options.trigger_size) if options.trigger else None,
        budget_s=60 * options.budget,
        rate=options.rate,
        seed=options.seed,
        said={"size_px": options.image_size} if options.image_size else {},
    )
    folder = _folder(out, Path(asked.encoder).name, [asked.encoder, asked.images, asked.seed])
    with tempfile.TemporaryDirectory(prefix="ssl-backdoor-audit-") as scratch, show_progress() as listen:
        found = audit_encoder(asked, store, Path(scratch), partial(listen, "audit"))
    facts = found.facts | {"name": options.encoder}
    with translate_os_errors(f"the folder {folder}"):
        files = write_encoder_audit(facts, found.pictures, folder)
        if found.embedding is not None and facts["verdict"]["kind"] in ("evidence", "no evidence"):
            files |= _write_challenge(folder, facts["verdict"]["kind"] == "evidence", found.embedding)
    result = facts | {"files": files, "store": store.root}
    return result | {"text": list(_lines(result))}


def _folder(out: Path, name: str, of: Sequence[Any]) -> Path:
    """A folder of its own for the page on ``name``, made."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name).strip(".")[:60] or "audit"
    folder = out / f"{plain}-{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:8]}"
    with translate_os_errors(f"the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_challenge(folder: Path, is_evidence: bool, embedding: Any) -> dict[str, str]:
    """predictions.json (1 where there is evidence) and the target's unit embedding, as CLIPTrace 2026 takes them."""
    import torch

    name = folder.name
    (folder / "embeddings").mkdir(exist_ok=True)
    (folder / "predictions.json").write_text(json.dumps({name: int(is_evidence)}), encoding="utf-8")
    torch.save(embedding.float(), folder / "embeddings" / f"{name}.pt")
    return {
        "predictions": str(folder / "predictions.json"),
        "embedding": str(folder / "embeddings" / f"{name}.pt"),
    }


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield result["verdict"]["sentence"]
    yield from result.get("others", ())
    yield from (f"left out: {one}" for one in result["left_out"])
    for what in ("page", "facts"):
        yield f"{what}: {result['files'][what]}"
