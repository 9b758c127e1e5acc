"""What may be deleted from a store: files that no manifest names and, on request, artifacts that no report reaches."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast, get_args

from ssl_backdoor.specs import Stage
from ssl_backdoor.store.base import ArtifactRef, ArtifactStore
from ssl_backdoor.store.contents import Entry
from ssl_backdoor.store.survey import Group, Survey, contents_of


@dataclass(frozen=True)
class Item:
    """One thing that may be deleted, and why."""

    name: str
    reason: str
    files: int
    bytes: int
    age_s: float
    """Since its newest file came."""
    entries: Sequence[Entry] = ()
    artifact: ArtifactRef | None = None
    """A finished artifact, deleted as a whole."""


class Garbage(NamedTuple):
    """Deletable contents of a store."""

    rubbish: list[Item]
    unreached: list[Item]
    """Finished artifacts that no report was made from, those first that were made from others."""
    too_recent: list[Item]
    """Of both kinds, those young enough to be in use still."""


def garbage(survey: Survey, rubbish_s: float, work_s: float, forgotten: Collection[ArtifactRef] = ()) -> Garbage:
    """Select what of ``survey`` may be deleted.

    Parts of commits that never ended and what is left of a training that ended go at an age of ``rubbish_s``;
    checkpoints that a training could still resume from, and artifacts that no report reaches, at one of
    ``work_s``: a run that takes long has made them, and its report comes last. ``forgotten`` reports count for none.
    Where a manifest cannot be read nothing is known to be unreached.
    """
    aged = [(rubbish_s, _of_group(each, "unfinished: no manifest names it", survey)) for each in survey.attempts]
    aged += [(rubbish_s, _of_group(each, "left by an interrupted write", survey)) for each in survey.temporary]
    for ref, group in survey.checkpoints.items():
        if ref in survey.artifacts:
            aged.append((rubbish_s, _of_group(group, "checkpoints of a finished training", survey)))
        else:
            aged.append((work_s, _of_group(group, "checkpoints of a training that was not resumed", survey)))
    found = Garbage([], [], [])
    for safe_s, item in aged:
        (found.rubbish if item.age_s >= safe_s else found.too_recent).append(item)
    for item in _unreached(survey, forgotten):
        is_old = item.age_s >= work_s or item.artifact in forgotten
        (found.unreached if is_old else found.too_recent).append(item)
    return found


def why_reach_is_unknown(survey: Survey) -> str:
    """Why it is not known which artifacts reports reach; empty where it is known."""
    if survey.unreadable:
        return next(iter(survey.unreadable.values()))
    link = next((each.name for each in survey.unknown_files if each.kind == "link"), None)
    return "" if link is None else f"expected plain files and folders, found a link at {link}; remove it"


def reachable(survey: Survey, forgotten: Collection[ArtifactRef] = ()) -> set[ArtifactRef]:
    """The reports but for ``forgotten`` ones, what they were made from, what that was made from, and so on."""
    by_key: dict[str, list[ArtifactRef]] = defaultdict(list)
    for ref in survey.artifacts:
        by_key[ref.key].append(ref)
    found = {ref for ref in survey.artifacts if ref.stage == "report"} - set(forgotten)
    waiting = list(found)
    while waiting:
        for key in survey.artifacts[waiting.pop()].manifest.inputs.values():
            new = set(by_key.get(key, ())) - found
            found |= new
            waiting.extend(new)
    return found


def sweep(store: ArtifactStore, items: Sequence[Item]) -> Iterator[Item]:
    """Delete ``items`` from ``store`` and yield each once it is gone; one that came into use meanwhile is skipped.

    Raises:
        StoreError: the store refuses; what was yielded is gone.
    """
    contents = contents_of(store)
    for item in items:
        if item.artifact is not None:
            if store.find(item.artifact.stage, item.artifact.key) is None:
                continue
            contents.delete_artifact(item.artifact)
        elif _is_committed_now(store, item):
            continue
        else:
            contents.delete_entries(item.entries)
        yield item


def _is_committed_now(store: ArtifactStore, item: Item) -> bool:
    """Whether a commit ended since the survey and its manifest names the parts that ``item`` is."""
    stage, _, rest = item.name.partition("/")
    key, _, attempt = rest.partition("/")
    if stage not in get_args(Stage) or key.startswith("."):
        return False
    ref = store.find(cast(Stage, stage), key)
    return ref is not None and attempt in ("", store.manifest(ref).parts)


def _unreached(survey: Survey, forgotten: Collection[ArtifactRef]) -> list[Item]:
    if why_reach_is_unknown(survey):
        return []
    kept = reachable(survey, forgotten)
    with_unknown_files = {tuple(each.name.split("/")[:2]) for each in survey.unknown_files}
    order = {stage: -index for index, stage in enumerate(get_args(Stage))}
    items = []
    for ref in sorted(survey.artifacts.keys() - kept, key=lambda ref: (order[ref.stage], ref.key)):
        one = survey.artifacts[ref]
        if (ref.stage, ref.key) in with_unknown_files:
            continue  # somebody's own file is in its folder
        reason = "to be forgotten" if ref in forgotten else "no report was made from it"
        age_s = survey.now_s - one.finished_s
        items.append(Item(f"{ref.stage}/{ref.key}", reason, len(one.manifest.files), one.bytes, age_s, artifact=ref))
    return items


def _of_group(group: Group, reason: str, survey: Survey) -> Item:
    files = sum(each.kind != "empty folder" for each in group.entries)
    return Item(group.name, reason, files, group.bytes, survey.now_s - group.changed_s, tuple(group.entries))
