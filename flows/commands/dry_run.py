"""``run --dry-run``: which stages a run would reuse and which it would make."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from flows.commands.results import find_reused, short
from ssl_backdoor.specs import Stage
from ssl_backdoor.stages import StageCall
from ssl_backdoor.store import ArtifactRef, ArtifactStore

_ORDER: tuple[Stage, ...] = get_args(Stage)


def dry_run(calls: Mapping[ArtifactRef, StageCall], store: ArtifactStore, until: Stage) -> dict[str, Any]:
    """Every stage up to ``until``, in their order, as plain JSON data; nothing is made.

    Raises:
        StoreError: the store cannot be read.
    """
    is_reused = find_reused(calls, store, until) is not None
    rows = [
        {
            "ref": f"{ref.stage}/{ref.key}",
            "title": call.title,
            "reused": is_reused or store.find(ref.stage, ref.key) is not None,
        }
        for ref, call in calls.items()
        if _ORDER.index(ref.stage) <= _ORDER.index(until)
    ]
    return {"store": store.root, "stages": rows}


def render(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines of what ``dry_run`` returned."""
    rows = result["stages"]
    for one in rows:
        yield f"{'reuse' if one['reused'] else 'make':<7}{short(one['ref']):<22}  {one['title']}"
    made = sum(not one["reused"] for one in rows)
    yield f"of {len(rows)} stages {len(rows) - made} would be reused and {made} made, in {result['store']}"
    if made:
        yield "next: ssl-backdoor estimate, with the same options, says how long that takes"
