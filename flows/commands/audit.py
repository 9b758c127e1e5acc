"""``ssl-backdoor audit``: what can be said of an encoder that somebody else made, on one page.

It runs in this process and its children, without Prefect and Ray; every stage is kept in the store and reused.
"""

import argparse
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flows.commands.encoder import trigger_of
from flows.terminal.console import show_progress
from ssl_backdoor.audit.encoder import Asked, audit_encoder
from ssl_backdoor.errors import translate_os_errors
from ssl_backdoor.report.audit import write_encoder_audit
from ssl_backdoor.store import open_store


def audit(options: argparse.Namespace, store_uri: str, out: Path) -> dict[str, Any]:
    """What the command hands back, as JSON data; ``text`` are the lines for people.

    Raises:
        UserError: an option, an encoder or the images cannot be used.
    """
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
    store = open_store(store_uri)
    store.check()
    folder = out / _name(asked)
    with translate_os_errors(f"the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ssl-backdoor-audit-") as scratch, show_progress() as listen:
        found = audit_encoder(asked, store, Path(scratch), partial(listen, "audit"))
    facts = found.facts | {"name": options.encoder}
    with translate_os_errors(f"the folder {folder}"):
        files = write_encoder_audit(facts, found.pictures, folder)
        if found.embedding is not None and facts["verdict"]["kind"] in ("evidence", "no evidence"):
            files |= _write_challenge(folder, facts["verdict"]["kind"] == "evidence", found.embedding)
    result = facts | {"files": files, "store": store.root}
    return result | {"text": list(_lines(result))}


def _name(asked: Asked) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(asked.encoder).name).strip(".")[:60] or "encoder"
    whole = json.dumps([asked.encoder, asked.images, asked.seed])
    return f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


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
