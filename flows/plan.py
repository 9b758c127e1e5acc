"""From what a person or a schedule asks for to the runs that answer it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flows import shorthand
from flows.overrides import apply, only_methods, replace
from flows.recipes import Size, choose
from flows.wording import reword
from ssl_backdoor.data.counts import Counts
from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs import FilesSourceSpec, ReportSpec, Spec
from tasks.planner import NO_SOURCES, Sources

MAX_SEEDS = 1000


class AsInRecipeSpec(Spec):
    """As the recipe says. Has no fields, so that a form can tell it from every other."""


class Planned(NamedTuple):
    """The runs, and how many images there are where the recipe looked at the data."""

    report: ReportSpec
    counts: Counts | None


def plan(recipe: str, size: Size | None = None, **asked: Any) -> ReportSpec:
    """The runs of ``plan_and_count``."""
    return plan_and_count(recipe, size, **asked).report


def plan_and_count(
    recipe: str,
    size: Size | None = None,
    *,
    pairs: int = 0,
    seeds: int = 0,
    methods: str | None = None,
    specs: Mapping[str, Spec | tuple[Spec, ...]] | None = None,
    settings: Sequence[str] = (),
    has_data: bool | None = False,
    sources: Sources = NO_SOURCES,
) -> Planned:
    """The runs of ``recipe`` with all that was asked to be different.

    ``pairs`` and ``seeds`` of 0 are the recipe's own; ``methods``, where given, leaves other runs out; ``specs`` takes
    the place of the field of that name in every run, then ``settings`` change single fields. ``has_data`` of None says
    that the runs are only to be looked at. ``sources`` are looked at by a recipe that follows its data.

    Raises:
        SpecError: it cannot be meant so.
    """
    chosen = choose(recipe, size)
    if chosen.is_fixed and (pairs or seeds):
        raise SpecError(f"the runs of {recipe} are written out: leave --pairs and --seeds out, or change its file")
    pairs, seeds = pairs or chosen.pairs, seeds or chosen.seeds
    if pairs > chosen.max_pairs:
        raise SpecError(f"{recipe} has {chosen.max_pairs} pair(s), fixed beforehand; found --pairs {pairs}")
    if seeds > MAX_SEEDS:
        raise SpecError(f"{MAX_SEEDS} seeds are the most, found --seeds {seeds}")
    if chosen.needs_data and has_data is False:
        raise SpecError(f"{recipe} needs --data PATH: a folder, an archive, WebDataset shards or a table of images")
    short: Mapping[str, str]
    counts: Counts | None
    (short, fields), build, counts = shorthand.split(settings), chosen.build, None
    if chosen.follow is not None:
        build, short, counts = chosen.follow(sources, short, fields)
    report = build(pairs, seeds)
    if methods is not None:
        report = only_methods(report, methods)
    given = {name: spec for name, spec in (specs or {}).items() if not isinstance(spec, AsInRecipeSpec)}
    report = apply(shorthand.expand(replace(report, given), short, counts), fields)
    changed = [f"methods={methods}"] * (methods is not None) + [f"another {name}" for name in given] + [*settings]
    if chosen.follow is not None:  # what is changed is what it is
        changed = []
    if changed or not chosen.is_fixed:
        report = reword(report, changed, chosen.name_variant, chosen.ask)
    if has_data and not any(isinstance(run.dataset.source, FilesSourceSpec) for run in report.runs):
        raise SpecError(f"{recipe} draws its own images and would not look at those given: leave --data out")
    return Planned(report, counts)
