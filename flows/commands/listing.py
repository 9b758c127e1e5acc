"""``ssl-backdoor list`` and ``recipes``: what there is, a line each."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from flows.commands.results import short
from flows.recipes import RECIPES, Recipe, Sized
from flows.terminal.units import bytes_text, duration_text
from ssl_backdoor.progress import OnProgress, silent
from ssl_backdoor.store import ArtifactStore, Manifest
from ssl_backdoor.store.survey import survey
from ssl_backdoor.words import plural

_WIDTH = 100
_INDENT = 34


def artifacts(store: ArtifactStore, stage: str | None, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Finished artifacts, of ``stage`` or of all, oldest first, as plain JSON data.

    Raises:
        StoreError: the store cannot be read.
    """
    found = survey(store, on_progress)
    rows = [
        {
            "ref": f"{ref.stage}/{ref.key}",
            "age_s": round(found.now_s - one.finished_s),
            "bytes": one.bytes,
            "title": title(one.manifest),
        }
        for ref, one in sorted(found.artifacts.items(), key=lambda pair: pair[1].finished_s)
        if stage in (None, ref.stage)
    ]
    return {"store": store.root, "artifacts": rows}


def render_artifacts(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines of what ``artifacts`` returned."""
    yield f"{result['store']}: {plural(len(result['artifacts']), 'artifact')}"
    for one in result["artifacts"]:
        age = f"{duration_text(one['age_s'])} ago"
        yield f"{short(one['ref']):<22}{age:>14}{bytes_text(one['bytes']):>10}  {one['title']}"
    if result["artifacts"]:
        yield f"next: ssl-backdoor show {short(result['artifacts'][-1]['ref'])}"


def title(manifest: Manifest) -> str:
    """An artifact for people, from its manifest alone: kinds, counts, seed."""
    spec, summary = manifest.spec, manifest.summary
    attack, train = _group(spec, "attack"), _group(spec, "train")
    groups = [attack, _group(train, "method"), *(_group(spec, name) for name in ("defence", "detector", "trigger"))]
    parts = [spec.get("recipe"), *(one.get("kind") for one in groups)]
    parts += [spec.get("target_class") or attack.get("target_class")]
    if manifest.stage == "ingest":
        parts += [f"{summary.get(f'num_{split}', 0)} {split}" for split in ("train", "test")]
        parts.append(f"{len(summary.get('classes', ()))} classes")
    if manifest.stage == "report":
        parts.append(plural(len(spec.get("runs", ())), "run"))
    parts += [f"seed {spec['seed']}"] if "seed" in spec else []
    return ", ".join(str(part) for part in parts if part)


def _group(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The fields below ``name``; none where there is no such group: a manifest may be anybody's."""
    found = spec.get(name)
    return found if isinstance(found, dict) else {}


def recipes() -> dict[str, Any]:
    """The recipes by whose experiment they are, as plain JSON data."""
    rows = [_recipe(name, size, recipe) for name, one in RECIPES.items() for size, recipe in _sizes(one)]
    return {"recipes": rows}


def render_recipes(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines of what ``recipes`` returned."""
    papers = dict.fromkeys(one["paper"] for one in result["recipes"])
    for number, paper in enumerate(papers):
        yield from ([""] if number else [])
        yield paper or "Both papers, and your own"
        for one in (one for one in result["recipes"] if one["paper"] == paper):
            data = "--data PATH" if one["needs_data"] else "embedded data"
            size = f", --size {one['size']}" if one["size"] else ""
            amount = f"{plural(one['pairs'], 'pair')}, {plural(one['seeds'], 'seed')}"
            text = f"{one['summary']} ({data}{size}; {amount})"
            first, *rest = textwrap.wrap(text, _WIDTH - _INDENT)
            yield f"  {one['name']:<{_INDENT - 2}}{first}"
            yield from (" " * _INDENT + line for line in rest)
    yield "next: ssl-backdoor show RECIPE, ssl-backdoor estimate RECIPE, ssl-backdoor run RECIPE"


def _sizes(one: Recipe | Sized) -> tuple[tuple[str, Recipe], ...]:
    return (("mini", one.mini), ("paper", one.paper)) if isinstance(one, Sized) else (("", one),)


def _recipe(name: str, size: str, recipe: Recipe) -> dict[str, Any]:
    fields = ("paper", "summary", "needs_data", "pairs", "max_pairs", "seeds")
    return {"name": name, "size": size} | {field: getattr(recipe, field) for field in fields}
