"""What a command hands back: references resolved, and a finished report as one JSON object."""

import json
from typing import Any, cast, get_args

from ssl_backdoor.errors import SpecError
from ssl_backdoor.identity import canonical
from ssl_backdoor.specs import ReportSpec, Stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore, open_store


def resolve(text: str, store_uri: str) -> tuple[ArtifactStore, ArtifactRef]:
    """``stage/key`` (or a unique beginning of the key) in the store at ``store_uri``.

    Raises:
        SpecError: no stage of that name, no such key, or several.
    """
    store = open_store(store_uri)
    stage, separator, prefix = text.rpartition("/")[0].rpartition("/")[2], "/" in text, text.rpartition("/")[2]
    if not separator or stage not in get_args(Stage):
        raise SpecError(f"expected STAGE/KEY with a stage of {', '.join(get_args(Stage))}; found {text!r}")
    keys = store.keys(cast(Stage, stage), prefix)
    if len(keys) != 1:
        found = "none" if not keys else f"{len(keys)}: {', '.join(key[:12] for key in keys[:4])}"
        raise SpecError(
            f"expected one {stage} artifact whose key begins with {prefix!r} in {store.root}, found {found}"
        )
    return store, store.ref(cast(Stage, stage), keys[0])


def describe(report: ReportSpec, page: ArtifactRef, store: ArtifactStore, until: Stage) -> dict[str, Any]:
    """The command's result; ``text`` is for people and taken out of the JSON."""
    result: dict[str, Any] = {
        "recipe": report.recipe,
        "runs": [canonical(run) for run in report.runs],
        "measurements": [],
        "artifacts": {"store": store.root},
        "seconds": {},
    }
    if until != "report":
        return result | {"text": f"{report.recipe}: done up to {until}"}
    folder = store.fetch(page)
    manifest = store.manifest(page)
    made = ReportSpec.model_validate(manifest.spec)  # of a matrix, what came through
    result["runs"] = [canonical(run) for run in made.runs]
    result["measurements"] = json.loads((folder / "measurements.json").read_text(encoding="utf-8"))
    result["seconds"] = manifest.summary["seconds"]
    result["artifacts"] |= {
        "report": str(folder / "report.html"),
        "markdown": str(folder / "report.md"),
        "report_ref": f"report/{page.key}",
    }
    answer = manifest.summary["answer"]
    note = f"{made.note}\n\n" if made.note else ""
    setting = "".join(f"{name}: {text}\n" for name, text in manifest.summary.get("setting", {}).items())
    if "tables" in manifest.summary:
        result["tables"] = manifest.summary["tables"]
    texts = manifest.summary["texts"]
    return result | {"answer": answer, "text": "\n\n".join([f"{note}{setting}", answer, *texts]) + "\n"}
