"""What a command hands back: references resolved, and a finished report as one JSON object."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast, get_args

from ssl_backdoor.errors import SpecError, StoreAwayError
from ssl_backdoor.identity import canonical
from ssl_backdoor.specs import ReportSpec, Stage
from ssl_backdoor.stages import StageCall
from ssl_backdoor.store import ArtifactRef, ArtifactStore, open_store
from tasks.recorded import is_recorded

_SHOWN = 10


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


def find_reused(
    calls: Mapping[ArtifactRef, StageCall], store: ArtifactStore, until: Stage
) -> tuple[ArtifactRef, ...] | None:
    """The artifacts of the stage ``until`` of a run that has nothing left to do; None where it has.

    A report is also to be in MLflow; and where this shell names a Prefect server its page is to show every run. None
    too where the store is away: the flow waits for it.
    """
    wanted = tuple(ref for ref in calls if ref.stage == until)
    if os.environ.get("PREFECT_API_URL") or not wanted:
        return None
    try:
        is_done = all(store.find(ref.stage, ref.key) is not None for ref in wanted)
    except StoreAwayError:
        return None
    return wanted if is_done and (until != "report" or is_recorded(wanted[0].key)) else None


def describe(
    report: ReportSpec, page: ArtifactRef, store: ArtifactStore, until: Stage, refs: Sequence[ArtifactRef] = ()
) -> dict[str, Any]:
    """The command's result; ``text`` is for people and taken out of the JSON. ``refs``: of the stage ``until``."""
    result: dict[str, Any] = {
        "recipe": report.recipe,
        "runs": [canonical(run) for run in report.runs],
        "measurements": [],
        "artifacts": {"store": store.root},
        "seconds": {},
    }
    if until != "report":
        summaries = {
            f"{ref.stage}/{ref.key}": store.manifest(ref).summary for ref in refs if store.find(until, ref.key)
        }
        checks = _check(report, store, refs) if until == "poison" else {}
        text = "\n".join([f"{report.recipe}: done up to {until}", *_made(until, summaries), *_checked(checks)])
        return result | {"made": summaries, "text": text} | ({"checks": checks} if checks else {})
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
    setting = "\n".join(f"{name}: {text}" for name, text in manifest.summary.get("setting", {}).items())
    if "tables" in manifest.summary:
        result["tables"] = manifest.summary["tables"]
    texts = manifest.summary["texts"]
    text = "\n\n".join(filter(None, [answer, made.note, *texts, setting])) + "\n"
    return result | {"answer": answer, "details": manifest.summary.get("details", []), "text": text}


def _check(report: ReportSpec, store: ArtifactStore, refs: Sequence[ArtifactRef]) -> dict[str, dict[str, Any]]:
    """What can be told of each poison before anything is trained on it, under the crops of the first run."""
    from ssl_backdoor.data.stored import open_lazy_dataset, open_overlay
    from ssl_backdoor.poison.checks import check_poison
    from ssl_backdoor.stages import PoisonStage

    found = {}
    for ref in refs[:_SHOWN]:
        manifest = store.manifest(ref)
        stage = PoisonStage.model_validate(manifest.spec)
        images = open_lazy_dataset(store, store.ref("ingest", manifest.inputs["dataset"]))
        views = report.runs[0].train.fit.views
        if one := check_poison(stage.attack, images, open_overlay(store, ref), views, stage.seed):
            facts = (
                {"attack": stage.attack.kind}
                | one._asdict()
                | {"lines": list(one.lines()), "problems": list(one.problems())}
            )
            found[f"{ref.stage}/{ref.key}"] = facts
    return found


def _checked(checks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for place, facts in checks.items():
        yield f"checks of {short(place)} ({facts['attack']}):"
        yield from (f"  {line}" for line in facts["lines"])
        yield from (f"  careful: {problem}" for problem in facts["problems"])


def _made(stage: Stage, summaries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """For people: what a stage made, and what can be done with it."""
    for place, summary in islice(summaries.items(), _SHOWN):
        facts = ", ".join(
            f"{name.removeprefix('num_')} {value:,.4g}"
            if isinstance(value, float)
            else f"{name.removeprefix('num_')} {len(value) if isinstance(value, list) else value}"
            for name, value in summary.items()
            if isinstance(value, str | int | float | list) and not isinstance(value, bool)
        )
        yield f"{short(place)}: {facts}"
    if len(summaries) > _SHOWN:
        yield f"and {len(summaries) - _SHOWN} more"


def next_commands(arguments: Sequence[str], until: Stage, refs: Sequence[ArtifactRef]) -> list[str]:
    """For people: what can be done after ``arguments`` have made ``refs``, of the stage ``until``."""
    place = next((short(f"{ref.stage}/{ref.key}") for ref in refs), "")
    if until == "report":
        return [f"next: ssl-backdoor browse, or ssl-backdoor run {place} --set ..."]
    export = f", or ssl-backdoor export {place} --out DIR" if until in ("ingest", "poison") else ""
    then = {"ingest": "poison", "poison": "train"}.get(until, "run")
    looks = [f"or:   ssl-backdoor show {place}{export}"] if place else []
    return [f"next: {shlex.join(['ssl-backdoor', then, *arguments[1:]])}", *looks]


def short(place: str) -> str:
    """``stage/key`` with as much of the key as tells it apart."""
    stage, _, key = place.partition("/")
    return f"{stage}/{key[:12]}"
