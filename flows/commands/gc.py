"""``ssl-backdoor gc``: what a store holds that nobody needs, and its removal where asked for."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flows.terminal.output import print_error
from flows.terminal.units import bytes_text, count_text, duration_text
from ssl_backdoor.errors import SpecError
from ssl_backdoor.progress import OnProgress, Progress, silent
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from ssl_backdoor.store.garbage import Garbage, Item, garbage, sweep, why_reach_is_unknown
from ssl_backdoor.store.survey import Survey, survey

RUBBISH_DAYS = 1.0
WORK_DAYS = 30.0
_DAY_S = 86_400.0
_SHOWN = 40
_SLOW_S = 2.0


class GcOptions(NamedTuple):
    """What a cleaning may take."""

    delete: bool = False
    """Else it only tells."""
    unreached: bool = False
    """Finished artifacts as well that no report was made from."""
    older_than_days: float | None = None
    """In place of one day for rubbish and thirty for what a run may still need."""
    forget: Sequence[str] = ()
    """Reports, by their keys' beginnings, that count for none."""


def collect(store: ArtifactStore, options: GcOptions, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Find what is of no use in ``store``, and delete it where ``options`` says so; what was found, as plain JSON data.

    Raises:
        SpecError: a report to forget is not there or not one alone; or artifacts that no report reaches are asked for
            while it is not known which these are.
        StoreError: the store cannot be read or written.
    """
    found = survey(store, on_progress)
    forgotten = [_report(found, key) for key in options.forget]
    rubbish_days, work_days = RUBBISH_DAYS, WORK_DAYS
    if options.older_than_days is not None:
        rubbish_days = work_days = options.older_than_days
    useless = garbage(found, rubbish_days * _DAY_S, work_days * _DAY_S, forgotten)
    doubt = why_reach_is_unknown(found)
    if doubt and (options.unreached or forgotten):
        raise SpecError(f"what reports reach is not known: {doubt}")
    chosen = [*useless.rubbish, *(useless.unreached if options.unreached else ())]
    if options.delete:
        gone = []
        for item in sweep(store, chosen):
            gone.append(item)
            on_progress(Progress(len(gone), len(chosen), "deleted"))
        chosen = gone
    return _result(store, found, useless, chosen, options)


def render(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines of what ``collect`` returned; the last one sums up."""
    yield from _listing("deleted" if result["deleted"] else "would go", result["items"])
    yield from _listing("no report was made from these; they go with --unreached", result["unreached"])
    if young := result["young"]:
        amount = f"{count_text(len(young), 'thing')}, {bytes_text(sum(one['bytes'] for one in young))}"
        yield f"kept: {amount}, not old enough (--older-than): a run may need them"
    for reason in result["unreadable"].values():
        yield f"left: {reason}"
    for name in result["unknown"][:_SHOWN]:
        yield f"left, not of this store: {name}"
    if len(result["unknown"]) > _SHOWN:
        yield f"left, not of this store: {len(result['unknown']) - _SHOWN:,} more"
    yield _summary(result)


def report_slow_progress(
    what: str, every_s: float = _SLOW_S, clock: Callable[[], float] = time.monotonic
) -> OnProgress:
    """A listener that says on stderr how far ``what`` is, once it takes longer than ``every_s``, and then so often."""
    reported_s = clock()

    def listen(progress: Progress) -> None:
        nonlocal reported_s
        if clock() - reported_s >= every_s:
            reported_s = clock()
            of = f" of {progress.total:,}" if progress.total else ""
            print_error(f"{what}: {progress.done:,}{of} {progress.unit}")

    return listen


def _report(found: Survey, key: str) -> ArtifactRef:
    reports = [
        ref for ref in found.artifacts if ref.stage == "report" and ref.key.startswith(key.removeprefix("report/"))
    ]
    if len(reports) != 1:
        raise SpecError(f"expected one report whose key begins with {key!r}, found {len(reports)}")
    return reports[0]


def _result(
    store: ArtifactStore, found: Survey, useless: Garbage, chosen: Sequence[Item], options: GcOptions
) -> dict[str, Any]:
    return {
        "store": store.root,
        "deleted": options.delete,
        "files": sum(item.files for item in chosen),
        "bytes": sum(item.bytes for item in chosen),
        "items": [_plain(item) for item in chosen],
        "unreached": [] if options.unreached else [_plain(item) for item in useless.unreached],
        "young": [_plain(item) for item in useless.too_recent],
        "unreadable": {f"{ref.stage}/{ref.key}": reason for ref, reason in found.unreadable.items()},
        "unknown": [entry.name for entry in found.unknown_files],
    }


def _plain(item: Item) -> dict[str, Any]:
    plain = {"name": item.name, "reason": item.reason, "files": item.files, "bytes": item.bytes}
    return {**plain, "age_s": round(item.age_s)}


def _listing(title: str, items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not items:
        return
    yield f"{title}:"
    for one in items[:_SHOWN]:
        age = duration_text(one["age_s"])
        yield f"{bytes_text(one['bytes']):>10}  {_short(one['name'])}  {one['reason']}; {age} old"
    if len(items) > _SHOWN:
        rest = items[_SHOWN:]
        yield f"{bytes_text(sum(one['bytes'] for one in rest)):>10}  in {len(rest):,} more (--json names them)"


def _summary(result: Mapping[str, Any]) -> str:
    items = result["items"]
    amount = f"{count_text(len(items), 'thing')}, {count_text(result['files'], 'file')}, {bytes_text(result['bytes'])}"
    if result["deleted"]:
        return f"deleted {amount}" if items else "nothing to delete"
    return f"{amount} would go: --delete removes them" if items else "nothing to delete"


def _short(name: str) -> str:
    """Keys and attempts cut to what tells them apart."""
    return "/".join(part[:14] if len(part) > 24 and not part.endswith(".ckpt") else part for part in name.split("/"))
