"""``ssl-backdoor inspect``: what the data hold and how an ingest would read them, before anything is computed."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.overrides import dataset_of, with_list
from flows.terminal.console import show_progress
from ssl_backdoor.data.counts import Counts
from ssl_backdoor.data.inspection import inspect_data
from ssl_backdoor.errors import translate_os_errors
from ssl_backdoor.preflight import problems_of_test
from ssl_backdoor.report.inspection import as_json, write_inspection
from tasks.planner import Sources


def inspect(settings: Sequence[str], sources: Sources, out: Path) -> dict[str, Any]:
    """What was found, as JSON data, with the files that were written into ``out`` and the lines for people.

    Raises:
        SpecError: a setting that is not of the dataset.
        UserError: the data cannot be used, or ``out`` cannot be written.
    """
    dataset = dataset_of([with_list(setting) for setting in settings], has_test_data=sources.test_data is not None)
    name = str(sources.data)
    with show_progress() as listen:
        found = inspect_data(dataset, name, sources.test_data, lambda progress: listen("inspect", progress))
    train, test = zip(*found.listing.classes.values(), strict=True) if found.listing.classes else ((), ())
    counts = Counts(tuple(found.listing.classes), train, test, *found.listing.num_unlabelled)
    doubts = [*found.listing.questions, *problems_of_test(counts, "")]
    if shared := found.facts["duplicates"]["num_test_also_train"]:
        doubts.append(f"{shared:,} test images are training images too, byte for byte: scores on them prove nothing")
    found = found._replace(listing=found.listing._replace(questions=tuple(doubts)))
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(name).name).strip(".")[:80] or "data"
    whole = os.fsencode(name if "://" in name else Path(name).absolute())
    place = hashlib.sha256(whole).hexdigest()  # two folders may have one name
    folder = out / f"{plain}-{place[:8]}"
    with translate_os_errors(f"the folder {folder}"):
        files = write_inspection(found, Path(name).name or name, folder)
    return {**as_json(found), "files": files}


def render(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines for people."""
    yield from found["summary"]
    for name, counts in list(found["classes"].items())[:20]:
        yield f"  {name}: {counts['train']:,} training, {counts['test']:,} test images"
    if len(found["classes"]) > 20:
        yield f"  and {len(found['classes']) - 20:,} more classes"
    for what, place in found["files"].items():
        yield f"{what.replace('_', ' ')}: {place}"
