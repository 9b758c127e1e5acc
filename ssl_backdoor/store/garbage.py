"""What may be taken out of a store: what no manifest names, and, where asked for, what no report reaches."""

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
    """One thing that may go, and why."""

    name: str
    reason: str
    files: int
    bytes: int
    age_s: float
    """Since its newest file came."""
    entries: Sequence[Entry] = ()
    artifact: ArtifactRef | None = None
    """Where a finished one goes as a whole."""


class Garbage(NamedTuple):
    """What is of no use in a store."""

    rubbish: list[Item]
    unreached: list[Item]
    """Finished artifacts that no report was made from, those first that were made from others."""
    young: list[Item]
    """Of both, what somebody may still be working with."""


def garbage(survey: Survey, rubbish_s: float, work_s: float, forgotten: Collection[ArtifactRef] = ()) -> Garbage:
    """What of ``survey`` may go.

    Parts of commits that never ended and what is left of a training that ended go at an age of ``rubbish_s``;
    checkpoints that a training could still be taken up from, and artifacts that no report reaches, at one of
    ``work_s``: a run that takes long has made them, and its report comes last. ``forgotten`` reports count for none.
    Where a manifest cannot be read nothing is known to be unreached.
    """
    aged = [(rubbish_s, _of_group(each, "unfinished: no manifest names it", survey)) for each in survey.attempts]
    aged += [(rubbish_s, _of_group(each, "left by an interrupted write", survey)) for each in survey.temporary]
    for ref, group in survey.checkpoints.items():
        if ref in survey.artifacts:
            aged.append((rubbish_s, _of_group(group, "checkpoints of a finished training", survey)))
        else:
            aged.append((work_s, _of_group(group, "checkpoints of a training that nobody took up again", survey)))
    found = Garbage([], [], [])
    for safe_s, item in aged:
        (found.rubbish if item.age_s >= safe_s else found.young).append(item)
    for item in _unreached(survey, forgotten):
        is_old = item.age_s >= work_s or item.artifact in forgotten
        (found.unreached if is_old else found.young).append(item)
    return found


def uncertain(survey: Survey) -> str:
    """Why it is not known what reports reach; empty where it is."""
    if survey.unreadable:
        return next(iter(survey.unreadable.values()))
    link = next((each.name for each in survey.strangers if each.kind == "link"), None)
    return "" if link is None else f"expected plain files and folders, found a link at {link}; remove it"


def reached(survey: Survey, forgotten: Collection[ArtifactRef] = ()) -> set[ArtifactRef]:
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
    """Take ``items`` out of ``store``, each told once it is gone; what became of use meanwhile stays and is not told.

    Raises:
        StoreError: the store refuses; what was told is gone.
    """
    contents = contents_of(store)
    for item in items:
        if item.artifact is not None:
            if store.find(item.artifact.stage, item.artifact.key) is None:
                continue
            contents.withdraw(item.artifact)
        elif _named_now(store, item):
            continue
        else:
            contents.remove(item.entries)
        yield item


def _named_now(store: ArtifactStore, item: Item) -> bool:
    """Whether a commit ended since the survey and its manifest names the parts that ``item`` is."""
    stage, _, rest = item.name.partition("/")
    key, _, attempt = rest.partition("/")
    if stage not in get_args(Stage) or key.startswith("."):
        return False
    ref = store.find(cast(Stage, stage), key)
    return ref is not None and attempt in ("", store.manifest(ref).parts)


def _unreached(survey: Survey, forgotten: Collection[ArtifactRef]) -> list[Item]:
    if uncertain(survey):
        return []
    kept, beside = reached(survey, forgotten), {tuple(each.name.split("/")[:2]) for each in survey.strangers}
    order = {stage: -index for index, stage in enumerate(get_args(Stage))}
    items = []
    for ref in sorted(survey.artifacts.keys() - kept, key=lambda ref: (order[ref.stage], ref.key)):
        one = survey.artifacts[ref]
        if (ref.stage, ref.key) in beside:
            continue  # somebody's own file stands there
        reason = "to be forgotten" if ref in forgotten else "no report was made from it"
        age_s = survey.now_s - one.finished_s
        items.append(Item(f"{ref.stage}/{ref.key}", reason, len(one.manifest.files), one.bytes, age_s, artifact=ref))
    return items


def _of_group(group: Group, reason: str, survey: Survey) -> Item:
    files = sum(each.kind != "empty folder" for each in group.entries)
    return Item(group.name, reason, files, group.bytes, survey.now_s - group.changed_s, tuple(group.entries))
