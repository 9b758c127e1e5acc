"""``ssl-backdoor compare``: several reports on one page."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from flows.commands.results import resolve
from ssl_backdoor.errors import SpecError, translate_os_errors
from ssl_backdoor.report import compare as comparison
from ssl_backdoor.specs import ReportSpec
from ssl_backdoor.store import is_folder
from ssl_backdoor.store.base import explain_damage
from ssl_backdoor.store.local import folder_of

_FRAME = "measurements.parquet"


def compare(references: Sequence[str], by: str, store: str, out: Path) -> dict[str, Any]:
    """Compare the reports ``references``: STAGE/KEY in ``store``, or with the folder or URI of another before it.

    Returns:
        The page's table and files, as JSON data.

    Raises:
        SpecError: fewer than two reports, or what is no report, or one without a results frame.
        StoreError: a store cannot be read.
    """
    reports: dict[str, comparison.Compared] = {}
    for text in references:
        place, separator, key = ("", "/", text[7:]) if text.startswith("report/") else text.rpartition("/report/")
        if not separator:
            raise SpecError(
                f"compare takes report/KEY or URI/report/KEY, found {text!r}; `ssl-backdoor status` has some"
            )
        if place and is_folder(place) and not folder_of(place).is_dir():
            raise SpecError(f"expected a store at {place!r}, found no folder there")
        opened, ref = resolve(f"report/{key}", place or store)
        manifest = opened.manifest(ref)
        if _FRAME not in manifest.files:
            raise SpecError(f"expected {_FRAME} in report/{ref.key[:12]}, found none; run that recipe again")
        with explain_damage(ref):
            frame = pd.read_parquet(opened.fetch(ref, [_FRAME]) / _FRAME)
            spec = manifest.spec
            reports[ref.key] = comparison.Compared(
                name=f"report/{ref.key[:12]}",
                recipe=spec["recipe"],
                answer=str(manifest.summary.get("answer", "")),
                frame=frame,
                unit=spec.get("unit", ReportSpec.model_fields["unit"].default),
                swept=frozenset(figure["attack"] for figure in spec.get("figures", ())),
                setting=manifest.summary.get("setting", {}),
                defences=_names_of_defences(spec),
            )
    if len(reports) < 2:
        raise SpecError(f"expected two reports or more, found {len(reports)}; name each once")
    name = hashlib.sha256(f"{by} {' '.join(reports)}".encode()).hexdigest()[:12]
    folder = out / f"{by}-{name}"
    with translate_os_errors(f"the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        found = comparison.compare(list(reports.values()), by, folder)
    files = {file.name.rpartition(".")[2]: str(file) for file in sorted(folder.iterdir()) if file.is_file()}
    return found | {"files": files}


def _names_of_defences(spec: Mapping[str, Any]) -> dict[str, str]:
    """For people, by kind; where a plug-in that is not loaded took part, kinds have to do."""
    try:
        runs = ReportSpec.model_validate(spec).runs
    except ValidationError:
        return {}
    return {one.kind: one.label for run in runs for one in run.defences}


def render(result: Mapping[str, Any]) -> Iterator[str]:
    """For people."""
    yield from result["text"].split("\n")
    yield from (f"{name}: {place}" for name, place in result["files"].items())
