"""``ssl-backdoor status``: a laboratory on one page. Looks only; nothing is written."""

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, get_args

from flows import settings
from flows.commands import servers
from flows.terminal.units import bytes_text, count_text, duration_text
from ssl_backdoor.errors import StoreError
from ssl_backdoor.progress import OnProgress, silent
from ssl_backdoor.specs import Stage
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from ssl_backdoor.store.survey import Artifact, Survey, step_of, survey
from tasks.sqlite_urls import file_of

_SHOWN = 10


def status(store: ArtifactStore, on_progress: OnProgress = silent) -> dict[str, Any]:
    """What the store holds and what runs around it, as plain JSON data; times in seconds, reports oldest first.

    Raises:
        StoreError: the store, or what `make up` keeps, cannot be read.
        SpecError: a variable of this shell names a server by what is no address.
    """
    found, named = survey(store, on_progress), servers.find_named()
    rubbish = [*found.attempts, *found.temporary]
    rubbish += [group for ref, group in found.checkpoints.items() if ref in found.artifacts]
    reports = sorted(
        ((ref, one) for ref, one in found.artifacts.items() if ref.stage == "report"),
        key=lambda pair: pair[1].finished_s,
    )
    return {
        "store": store.root,
        "time": _time(found.now_s),
        "stages": {stage: _sums(found, stage) for stage in get_args(Stage)},
        "unfinished": list(_unfinished(found)),
        "rubbish": {
            "num": len(rubbish),
            "files": sum(len(group.entries) for group in rubbish),
            "bytes": sum(group.bytes for group in rubbish),
        },
        "unreadable": {f"{ref.stage}/{ref.key}": reason for ref, reason in found.unreadable.items()},
        "unknown": [entry.name for entry in found.unknown_files],
        "reports": [_report(ref, one) for ref, one in reports],
        "servers": {one.name: {"address": one.address, "answers": one.is_up} for one in named},
        "services": servers.probe_home(),
        "mlflow": _mlflow(reports, named),
    }


def render(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines of what ``status`` returned."""
    yield f"{result['store']}, {result['time']}"
    yield ""
    yield f"{'STAGE':<10}{'FINISHED':>10}{'SIZE':>10}  WORK"
    sums = result["stages"]
    total = {name: sum(one[name] for one in sums.values()) for name in ("finished", "bytes", "seconds")}
    for name, one in (*sums.items(), ("all", total)):
        yield f"{name:<10}{one['finished']:>10,}{bytes_text(one['bytes']):>10}  {duration_text(one['seconds'])}"
    yield ""
    yield from _work_lines(result)
    yield ""
    yield from _report_lines(result)
    yield ""
    yield f"this shell: {_servers_text(result)}"
    yield f"make up:    {_services_text(result['services'])}"
    yield f"MLflow:     {_mlflow_text(result['mlflow'], len(result['reports']))}"


def _sums(found: Survey, stage: Stage) -> dict[str, float]:
    ours = [one for ref, one in found.artifacts.items() if ref.stage == stage]
    seconds = round(sum(one.manifest.seconds for one in ours), 1)
    return {"finished": len(ours), "bytes": sum(one.bytes for one in ours), "seconds": seconds}


def _unfinished(found: Survey) -> Iterator[dict[str, Any]]:
    for ref, group in sorted(found.checkpoints.items(), key=lambda pair: pair[1].changed_s):
        if ref not in found.artifacts:
            age_s = round(found.now_s - group.changed_s)
            yield {"ref": f"{ref.stage}/{ref.key}", "step": step_of(group), "age_s": age_s, "bytes": group.bytes}


def _report(ref: ArtifactRef, one: Artifact) -> dict[str, Any]:
    runs = one.manifest.spec.get("runs")
    return {
        "ref": f"report/{ref.key}",
        "recipe": _recipe(one),
        "runs": len(runs) if isinstance(runs, list) else 0,
        "time": _time(one.finished_s),
    }


def _recipe(report: Artifact) -> str:
    return str(report.manifest.spec.get("recipe", ""))


def _mlflow(reports: Sequence[tuple[ArtifactRef, Artifact]], named: Sequence[servers.Server]) -> dict[str, Any]:
    """How many reports MLflow does not hold; ``missing`` is None where it cannot be asked."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if any(one.name == "MLflow" and not one.is_up for one in named):
        return {"missing": None, "reason": "it does not answer"}
    file = file_of(uri)
    if (file is not None and not file.exists()) or not reports:
        return {"missing": len(reports)}
    from tasks.tracking import find_recorded  # takes seconds to import

    try:
        in_mlflow = find_recorded({_recipe(one) for _, one in reports} - {""})
    except StoreError as error:
        return {"missing": None, "reason": str(error)}
    return {"missing": sum(ref.key not in in_mlflow for ref, _ in reports)}


def _work_lines(result: Mapping[str, Any]) -> Iterator[str]:
    unfinished, rubbish = result["unfinished"], result["rubbish"]
    yield f"unfinished: {count_text(len(unfinished), 'training') if unfinished else 'none'}"
    for one in unfinished[-_SHOWN:]:
        stage, _, key = one["ref"].partition("/")
        age = duration_text(one["age_s"])
        yield f"  {stage}/{key[:12]}  step {one['step']:,}, {age} ago, {bytes_text(one['bytes'])}"
    if rubbish["num"]:
        amount = f"{count_text(rubbish['files'], 'file')}, {bytes_text(rubbish['bytes'])}"
        yield f"rubbish:    {count_text(rubbish['num'], 'unfinished attempt')} or left-overs, {amount}: ssl-backdoor gc"
    else:
        yield "rubbish:    none"
    for reason in result["unreadable"].values():
        yield f"DAMAGED:    {reason}"
    if result["unknown"]:
        yield f"not ours:   {count_text(len(result['unknown']), 'file')}, such as {result['unknown'][0]}"


def _report_lines(result: Mapping[str, Any]) -> Iterator[str]:
    reports = result["reports"]
    hidden = f", the last {_SHOWN}" if len(reports) > _SHOWN else ""
    yield f"reports:    {len(reports):,}{hidden}" if reports else "reports:    none"
    for one in reports[-_SHOWN:]:
        yield f"  {one['time']}  {one['ref'][:19]}  {one['recipe']}, {count_text(one['runs'], 'run')}"


def _servers_text(result: Mapping[str, Any]) -> str:
    parts = [
        f"{name} at {one['address']}{'' if one['answers'] else ' (DOES NOT ANSWER)'}"
        for name, one in result["servers"].items()
    ]
    embedded = [name for name in ("Prefect", "MLflow", "Ray") if name not in result["servers"]]
    if embedded:
        parts.append(f"{', '.join(embedded)} embedded, kept in {settings.HOME}")
    return "; ".join(parts)


def _services_text(services: Mapping[str, bool] | None) -> str:
    if services is None:
        return f"never run in {settings.HOME}"
    silent_ones = [name for name, answers in services.items() if not answers]
    if not silent_ones:
        return f"all services answer in {settings.HOME}"
    if len(silent_ones) == len(services):
        return f"services of {settings.HOME} are down"
    return f"{', '.join(silent_ones)} of {settings.HOME} DO NOT ANSWER: make up"


def _mlflow_text(mlflow: Mapping[str, Any], num_reports: int) -> str:
    missing = mlflow["missing"]
    if missing is None:
        return f"not looked at, {mlflow['reason']}"
    if not missing:
        return "holds every report"
    return f"{missing:,} of {count_text(num_reports, 'report')} not recorded: ssl-backdoor reindex"


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
