"""``--set path=value``: change one field of every run of a recipe that has it. ``--methods``: leave runs out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows import fields
from ssl_backdoor.data.dataset import CLASS_LISTS, class_list
from ssl_backdoor.errors import SpecError
from ssl_backdoor.specs import (
    BYOLSpec,
    DatasetSpec,
    FilesSourceSpec,
    NoAttackSpec,
    ReportSpec,
    RunSpec,
    Spec,
    TableSpec,
    TrainSpec,
)
from ssl_backdoor.words import did_you_mean, explain


def apply(report: ReportSpec, settings: Sequence[str]) -> ReportSpec:
    """``report`` with each ``path=value`` set in every run that has the field; equal runs are kept once.

    They are read in their order, and the runs are to be valid after the last. A ``kind`` brings its own defaults, and
    what has none stays as it was. A value is JSON where it parses as JSON, else text; ``@imagenet100_a`` and
    ``@imagenet100_b`` are known lists. A field of one attack (such as attack.num_poisons) leaves runs under another as
    they are. Of several defences, probes or detectors one is named by its kind or index, all by "*":
    defences.compress.fit.epochs=2.

    Tables are those of the probes that are then computed. ``show_recalled=true`` is of the report, not of runs.

    Raises:
        SpecError: a path that no run has, or a value that the field refuses.
    """
    drafts = [_Draft(run) for run in report.runs]
    for setting in settings:
        path, separator, text = setting.partition("=")
        if not separator or not path:
            raise SpecError(f"--set expects path=value (such as train.fit.epochs=3), found {setting!r}")
        if path == "show_recalled" and text in ("true", "false"):
            report = report.model_copy(update={path: text == "true"})
            continue
        if not (having := [draft for draft in drafts if draft.problem(path) is None]):
            raise SpecError(f"--set {path}: {drafts[0].problem(path)}")
        value = _value(text)
        for draft in having:
            draft.set(path, value)
    return _with_runs(report, [_with_trigger_digest(draft.run()) for draft in drafts])


def dataset_of(settings: Sequence[str], *, has_test_data: bool = False) -> DatasetSpec:
    """A dataset with each ``dataset.field=value`` set; with a second source where there is one.

    Raises:
        SpecError: a setting of something else, or one that the field refuses.
    """
    if other := [setting for setting in settings if not setting.startswith("dataset.")]:
        raise SpecError(f"inspect looks at data alone, so --set takes dataset.*, found {other[0]!r:.80}")
    second = {"test_source": FilesSourceSpec()} if has_test_data else {}
    run = RunSpec(dataset=DatasetSpec(**second), attack=NoAttackSpec(), train=TrainSpec(method=BYOLSpec()))
    report = ReportSpec(recipe="", question="", runs=(run,))
    return apply(report, settings).runs[0].dataset


def _with_runs(report: ReportSpec, runs: Sequence[RunSpec]) -> ReportSpec:
    """``report`` over ``runs``, equal ones once, with the tables of their probes."""
    tables = _tables_of(report.tables, report.runs, runs)
    return report.model_copy(update={"runs": tuple(dict.fromkeys(runs)), "tables": tables})


def _tables_of(
    tables: Sequence[TableSpec], before: Sequence[RunSpec], after: Sequence[RunSpec]
) -> tuple[TableSpec, ...]:
    """``tables`` without those of probes that are no longer computed, and one like the first for each new probe."""
    old, new = (
        {name: None for run in runs for name in run.evaluation.probe_names(run.train.backbone)}
        for runs in (before, after)
    )
    kept = [table for table in tables if table.probe in new]
    for name in [name for name in new if tables and name not in old]:
        stem = tables[0].name.removesuffix(tables[0].probe)
        kept.append(tables[0].model_copy(update={"name": f"{stem}{name}", "probe": name, "paper": ()}))
    return tuple(kept)


def replace(report: ReportSpec, specs: Mapping[str, Spec | tuple[Spec, ...]]) -> ReportSpec:
    """``report`` with the whole ``dataset``, ``attack``, ``train``, ... of every run exchanged.

    Raises:
        SpecError: a run that cannot be, such as an attack on captions under a method that reads none.
    """
    if not specs:
        return report
    changes = {name: _plain(spec) for name, spec in specs.items()}
    runs = [parse_run(run.model_dump(mode="json") | changes, " and ".join(changes)) for run in report.runs]
    return _with_runs(report, runs)


def _plain(spec: Spec | tuple[Spec, ...]) -> Any:
    return [_plain(one) for one in spec] if isinstance(spec, tuple) else spec.model_dump(mode="json")


def only_methods(report: ReportSpec, methods: str) -> ReportSpec:
    """``report`` with the runs, and the lines of tables, of ``methods`` alone: kinds, such as "byol,moco_v2".

    Raises:
        SpecError: no run has one of them.
    """
    asked = [name.strip() for name in methods.split(",") if name.strip()]
    known = sorted({run.train.method.kind for run in report.runs})
    if not asked or not set(asked) <= set(known):
        wrong = ", ".join(name for name in asked if name not in known) or "none"
        raise SpecError(f"--methods expects some of {','.join(known)} (those of {report.recipe}), found {wrong}")
    runs = tuple(run for run in report.runs if run.train.method.kind in asked)
    return of_runs(report, runs)


def of_runs(report: ReportSpec, runs: tuple[RunSpec, ...]) -> ReportSpec:
    """``report`` over ``runs`` alone: figures and lines of tables without a run go, and tables without a line."""
    variants = {run.variant for run in runs}
    tables = []
    for table in report.tables:
        rows = tuple(row for row in table.rows if row.variant in variants)
        labels = {row.label for row in rows}
        paper = tuple(cell for cell in table.paper if cell.row in labels)
        tables += [table.model_copy(update={"rows": rows, "paper": paper})] if rows else []
    attacks = {run.attack.kind for run in runs}
    figures = tuple(figure for figure in report.figures if figure.attack in attacks)
    return report.model_copy(update={"runs": runs, "tables": tuple(tables), "figures": figures})


def with_list(setting: str) -> str:
    """``path=@file`` with the file's list, one item a line, in its place; any other setting as it is.

    train.backbone=FILE.py:FUNCTION becomes that backbone, the file loaded as a plug-in.

    For the command line alone: a flow that others start must not read them files of the worker's machine.

    Raises:
        SpecError: no such file, or one that is not text.
    """
    if setting.startswith("train.backbone=") and ".py:" in setting:
        from ssl_backdoor.encoders import own_backbone  # imports torch

        return f"train.backbone={own_backbone(setting.partition('=')[2]).model_dump_json()}"
    path, _, name = setting.partition("=@")
    if not name or name in CLASS_LISTS:
        return setting
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise SpecError(
            f"--set expects a readable file or {' or '.join(CLASS_LISTS)} after @, found {name!r} ({reason})"
        ) from error
    return f"{path}={json.dumps([line.strip() for line in lines if line.strip() and not line.startswith('#')])}"


def _value(text: str) -> Any:
    if text.startswith("@"):
        if text[1:] not in CLASS_LISTS:
            raise SpecError(
                f"a setting expects {' or '.join(CLASS_LISTS)} after @, found {text[1:]!r:.80}: only the command line "
                "reads files, give the list itself"
            )
        return list(class_list(text[1:]))
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class _Draft:
    """A run while settings change it: it need not be valid until the last one."""

    def __init__(self, run: RunSpec) -> None:
        self._document: Any = run.model_dump(mode="json")
        self._run = run
        self._changed_by = ""

    def run(self) -> RunSpec:
        """What was made of it.

        Raises:
            SpecError: it is not valid; the message names the setting since which it is not.
        """
        return parse_run(self._document, self._changed_by) if self._changed_by else self._run

    def problem(self, path: str) -> str | None:
        """What is wrong with ``path``: where it ends and what there is instead; None where it is a field."""
        steps = path.split(".")
        places: list[Any] = [self._document]
        for depth, step in enumerate(steps):
            if not any(_has(place, step) for place in places):
                known = sorted({one for place in places for one in _steps_into(place)})
                near = did_you_mean(step, known) or f"; it has {', '.join(known) or 'no fields'}"
                return f"{'.'.join(steps[:depth]) or 'a run'} has no field {step!r}{near}"
            places = [found for place in places if _has(place, step) for found in _into(place, step)]
        return None

    def set(self, path: str, value: Any) -> None:
        """Change the fields at ``path``; another ``kind`` comes with its own defaults."""
        places: list[Any] = [self._document]
        *parents, name = path.split(".")
        for step in parents:
            places = [found for place in places if _has(place, step) for found in _into(place, step)]
        for place in places:
            if isinstance(place, list):
                for at, _ in _items(place, name):
                    place[at] = value
            elif name == "kind" and parents:
                known = fields.of_kind(parents, str(value), place)
                place.clear()
                place.update(known)
            elif name in place:
                place[name] = value
        try:
            self._run = RunSpec.model_validate(self._document)
        except ValidationError:
            self._changed_by = self._changed_by or f"--set {path}={json.dumps(value):.80}"
        else:
            self._document, self._changed_by = self._run.model_dump(mode="json"), ""


def _has(place: Any, step: str) -> bool:
    return step in place if isinstance(place, dict) else bool(_items(place, step))


def _into(place: Any, step: str) -> list[Any]:
    """What lies at ``step``: of a list the one of that index or kind, or all of them under "*"."""
    return [place[step]] if isinstance(place, dict) else [one for _, one in _items(place, step)]


def _items(place: Any, step: str) -> list[tuple[int, Any]]:
    """Index and value of the items of a list that ``step`` names."""
    if not isinstance(place, list):
        return []
    return [(at, one) for at, one in enumerate(place) if step in ("*", str(at)) or step == _kind_of(one)]


def _steps_into(place: Any) -> list[str]:
    if isinstance(place, list):
        return [_kind_of(one) or str(at) for at, one in enumerate(place)]
    return list(place) if isinstance(place, dict) else []


def _kind_of(value: Any) -> str:
    return str(value.get("kind", "")) if isinstance(value, dict) else ""


def parse_run(document: Any, where: str) -> RunSpec:
    """A run from plain data, or one sentence on what is wrong with it."""
    try:
        return RunSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError(f"{where}: {describe(error, document)}") from error


def describe(error: ValidationError, document: Any = None, specs: fields.Specs = fields.ROOT) -> str:
    """Pydantic's findings as one sentence, with paths that ``--set`` takes.

    Args:
        error: what was found.
        document: the plain data that was read: paths are freed of the kinds that pydantic puts into them.
        specs: what it was read as one of.
    """
    return "; ".join(_finding(item, document, specs) for item in error.errors()[:3])


def _finding(item: Mapping[str, Any], document: Any, specs: fields.Specs) -> str:
    """Where, what, and what was found there; the last only where it is a value and no whole spec."""
    where, known = _locate(item["loc"], document, specs)
    what = explain(item, known)
    return f"{where}: {what}" if where else what


def _locate(loc: Sequence[str | int], document: Any, specs: fields.Specs) -> tuple[str, list[str]]:
    """``loc`` as a path that ``--set`` takes, and the fields that its last step could have named."""
    steps: list[str] = []
    known: list[str] = []
    place: Any = document
    for part in loc:
        kind = _kind_of(place)
        if str(part).startswith("function-") or (kind and part == kind and part not in place):
            continue  # no field: a validator, or the kind that pydantic chose
        steps.append(str(part))
        specs = tuple(one for one in specs if not kind or fields.kind_of(one) in ("", kind))
        known = [name for one in specs for name in one.model_fields]
        inner = fields.step(specs, str(part))
        specs = inner.specs if inner is not None else ()
        if isinstance(place, Mapping):
            place = place.get(part)
        else:
            place = place[part] if isinstance(place, list | tuple) and isinstance(part, int) else None
    return ".".join(steps), known


def _with_trigger_digest(run: RunSpec) -> RunSpec:
    """Fill in the digest of an image trigger, so that the file's content is part of the key."""
    trigger = run.attack.trigger
    if trigger is None or (known := trigger.with_digest()) == trigger:
        return run
    return run.model_copy(update={"attack": run.attack.model_copy(update={"trigger": known})})
