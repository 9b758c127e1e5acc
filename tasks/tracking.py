"""The MLflow record of a finished report: the only code that writes to MLflow.

Everything is read back from the store, so the record can be made at any time and made again: a parent run with the
answer and its few key figures, and a child for each encoder under each test (a control that many runs share has one)
with specs as parameters, manifest digests as dataset inputs, training curves per step, the encoder as a model that
points into the store, and the same metric names on every child, so that MLflow's compare page is useful at once:
``facts/num_poisons`` against success, say. ``mlflow_view`` makes the page that people are sent to.
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Schema, TensorSpec
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import ValidationError

from ssl_backdoor.errors import StoreAwayError, StoreError, to_printable_line
from ssl_backdoor.report.frame import covariates, headline_probes, is_of_plugin, pair_of
from ssl_backdoor.specs import Arm, ReportSpec, RunSpec
from ssl_backdoor.store import ArtifactRef, ArtifactStore, Manifest
from ssl_backdoor.store.base import explain_damage
from tasks import mlflow_view
from tasks.recorded import REPORT_KEY as _REPORT_KEY
from tasks.sqlite_urls import file_of, sqlite_url

os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run, in the middle of a log
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its own 7 wait four minutes for a server that is down
_ALREADY_THERE = "RESOURCE_ALREADY_EXISTS"
_BATCH = 900  # MLflow takes at most 1,000 metrics a call
_CURVE_POINTS = 200
_COLLISIONS = 3  # of records of one experiment at the same moment, before it is an error
_WRITERS = 4  # at once, to a server: most of the time is waiting for its answers
_SOURCE = {"mlflow.source.name": "ssl-backdoor", "mlflow.source.type": "LOCAL"}
_MAX_NAME = 250  # characters of a run's or an experiment's name that MLflow's tables hold
_SYSTEM = {
    "images_per_second": ("images_per_second", 1.0),
    "step_s": ("step_seconds", 1.0),
    "data_wait_frac": ("data_wait_percentage", 100.0),
    "cpu_frac": ("cpu_utilization_percentage", 100.0),
    "resident_bytes": ("resident_memory_megabytes", 1e-6),
    "peak_resident_bytes": ("peak_resident_memory_megabytes", 1e-6),
    "gpu_frac": ("gpu_utilization_percentage", 100.0),
    "gpu_bytes": ("gpu_memory_megabytes", 1e-6),
    "peak_gpu_bytes": ("peak_gpu_memory_megabytes", 1e-6),
}
"""What a training's manifest says of its machine: MLflow's name, under "system/", and the factor to its unit."""
_ON_FEATURES = ("features", "retrieval")  # what is measured without a probe


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Turn MLflow's errors into one sentence: its own repeat the server's address with the password in it.

    Raises:
        StoreAwayError: the server does not answer, or refuses.
    """
    try:
        yield
    except MlflowException as error:
        raise StoreAwayError(
            f"MLflow cannot be written ({to_printable_line(str(error))[:300]}); "
            "check MLFLOW_TRACKING_URI and its server"
        ) from None


@task(name="record", cache_policy=NO_CACHE, persist_result=False)
@_translate_errors()
def record(report: ArtifactRef, store: ArtifactStore) -> str:
    """Write ``report`` to MLflow unless it is there already; where people compare its runs (``mlflow_view``).

    ``SSL_BACKDOOR_MLFLOW_PAGE`` is MLflow's address for a browser, where that is another than for this process.
    """
    client = mlflow.MlflowClient()
    run = client.get_run(write(report, store, client))
    page = os.environ.get("SSL_BACKDOOR_MLFLOW_PAGE") or client.tracking_uri
    place = f"experiments/{run.info.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey"
    return f"{to_printable_line(page).rstrip('/')}/#/{place}={_short(report)}"


def _short(report: ArtifactRef) -> str:
    """The report as its runs' tag, its view and its name have it."""
    return report.key[:8]


def reindex(store: ArtifactStore, on_damaged: Callable[[str], object]) -> Iterator[str]:
    """Write every report of ``store`` to MLflow unless it is there; one line for each as it is done.

    Why one cannot be read is given to ``on_damaged``, and the rest goes on.

    Raises:
        StoreAwayError: MLflow's server does not answer, or refuses.
    """
    client = mlflow.MlflowClient()
    for key in store.keys("report"):
        ref = store.ref("report", key)
        try:
            with explain_damage(ref):
                run = write(ref, store, client)
                yield f"report/{key[:12]} {store.manifest(ref).spec['recipe']}: MLflow run {run}"
        except StoreAwayError:
            raise
        except StoreError as error:
            on_damaged(str(error))


def open_database_ahead() -> None:
    """Open or create MLflow's database, which takes seconds, before ``record`` needs it; errors are left to that."""
    if (file := file_of(mlflow.get_tracking_uri())) is not None:
        with suppress(Exception):
            if not file.exists():
                _make_database(file)
            mlflow.MlflowClient()


def _make_database(file: Path) -> None:
    """Whole or not at all: a shell that is killed meanwhile leaves no half-made tables, and no other's are touched."""
    with TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder, suppress(FileExistsError):
        made = Path(folder) / file.name
        mlflow.MlflowClient(sqlite_url(made))
        os.link(made, file)


@_translate_errors()
def write(report: ArtifactRef, store: ArtifactStore, client: mlflow.MlflowClient) -> str:
    """Write ``report`` to MLflow unless it is there already; return the parent run's id.

    Idempotent, also under concurrent writers. Clocks of two machines cannot decide whether an incomplete run is still
    being written: it is deleted only once a complete one exists, which its writer, if there is one, then finds. Of two
    complete ones both writers keep the same.
    """
    try:
        spec = ReportSpec.model_validate(store.manifest(report).spec)
    except ValidationError as error:
        raise StoreError(
            f"{report.stage}/{report.key[:12]} was made with other specs than there are now, or with a --plugin that "
            "is to be given again"
        ) from error
    experiment = _experiment(client, spec.recipe)
    if whole := _known(client, experiment, report.key)[0]:
        return whole[0]
    recipe = to_printable_line(spec.recipe)
    name, tags = f"{recipe[: _MAX_NAME - 9]} {_short(report)}", {"recipe": recipe, _REPORT_KEY: report.key}
    own = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    try:
        if not _known(client, experiment, report.key)[0]:  # who finished before this run was there left it alone
            _fill(client, experiment, own, report, store, spec)
            client.set_terminated(own, "FINISHED")
    except BaseException as error:
        if not (isinstance(error, MlflowException) and _known(client, experiment, report.key)[0]):
            client.set_terminated(own, "FAILED")
            raise
    whole, half = _known(client, experiment, report.key)
    for run_id in half if whole[0] == own else [own]:
        _delete(client, experiment, run_id)
    return whole[0]


def find_recorded(recipes: Iterable[str]) -> set[str]:
    """Keys of the reports of ``recipes`` that MLflow holds whole.

    Raises:
        StoreError: it cannot be asked.
    """
    client = mlflow.MlflowClient()
    try:
        found = (client.get_experiment_by_name(_name(recipe)) for recipe in recipes)
        experiments = [one.experiment_id for one in found if one is not None]
        asked = f"tags.`{_REPORT_KEY}` LIKE '%' AND attributes.status = 'FINISHED'"
        runs = client.search_runs(experiments, asked, max_results=50_000) if experiments else []
        return {str(run.data.tags[_REPORT_KEY]) for run in runs}
    except MlflowException as error:
        raise StoreError(f"MLflow does not say what it holds ({type(error).__name__}); look at its log") from error


def _known(client: mlflow.MlflowClient, experiment: str, key: str) -> tuple[list[str], list[str]]:
    """Parent runs of the report in an order that all writers see: those that are whole, and the others."""
    runs = client.search_runs([experiment], f"tags.`{_REPORT_KEY}` = '{key}'", order_by=["attributes.run_id ASC"])
    whole = [str(run.info.run_id) for run in runs if run.info.status == "FINISHED"]
    return whole, [str(run.info.run_id) for run in runs if run.info.status != "FINISHED"]


def _delete(client: mlflow.MlflowClient, experiment: str, parent_id: str) -> None:
    for child in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent_id}'", max_results=50_000):
        for model in client.search_logged_models([experiment], f"source_run_id = '{child.info.run_id}'"):
            client.delete_logged_model(model.model_id)
        client.delete_run(child.info.run_id)
    client.delete_run(parent_id)


def _fill(
    client: mlflow.MlflowClient,
    experiment: str,
    parent_id: str,
    report: ArtifactRef,
    store: ArtifactStore,
    spec: ReportSpec,
) -> None:
    manifest = store.manifest(report)
    children: dict[tuple[str, str, str], _Child] = {}
    for index, run in enumerate(spec.runs):
        arms = [arm for arm in run.arms if f"{index:03d}/{arm.role}/scores" in manifest.inputs]
        found = [_Evidence(store, manifest, index, run, arm) for arm in arms]
        control = next((one.measured() for one in found if one.arm.role == "clean"), {})
        for one in found:
            place = one.arm.role, one.model.key, one.scores.key
            if place not in children:
                children[place] = _Child(one, run, mlflow_view.headline(one.measured(), control), _short(report))
    made = list(children.values())
    mlflow_view.name_groups([child.tags for child in made])
    of_encoder: dict[str, list[_Child]] = {}
    for child in made:
        of_encoder.setdefault(child.encoder, []).append(child)

    def write_all(children: list[_Child]) -> set[str]:
        model = ""
        found: set[str] = set()
        for child in children:
            model, metrics = child.write(client, experiment, parent_id, model)
            found |= metrics
        return found

    read = {(one.dataset.name, one.dataset.digest): one for child in made for one in child.inputs}
    # first and alone: children that bring MLflow a new dataset at once would collide
    _settle(lambda: client.log_inputs(parent_id, list(read.values())))
    is_file = file_of(client.tracking_uri) is not None  # which takes one writer at a time
    with ThreadPoolExecutor(1 if is_file else _WRITERS) as threads:
        names = set().union(*threads.map(write_all, of_encoder.values()))
    _summary(client, parent_id, spec, report, store, made)
    shared = mlflow_view.view(_short(report), names)
    _tag(client, experiment, f"{mlflow_view.VIEW_TAG}{_short(report)}", shared)


def _name(recipe: str) -> str:
    """The experiment of a recipe, which may be named after a user's file."""
    return to_printable_line(recipe)[:_MAX_NAME]


def _experiment(client: mlflow.MlflowClient, recipe: str) -> str:
    name = _name(recipe)
    found = client.get_experiment_by_name(name)
    if found is None:
        location = os.environ.get("SSL_BACKDOOR_MLFLOW_ARTIFACTS")
        try:
            client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != _ALREADY_THERE:
                raise
        return _experiment(client, recipe)  # of two first reports at once the other may have made it
    _tag(client, str(found.experiment_id), mlflow_view.KIND_TAG, mlflow_view.KIND)
    return str(found.experiment_id)


def _tag(client: mlflow.MlflowClient, experiment: str, name: str, value: str) -> None:
    if client.get_experiment(experiment).tags.get(name) != value:
        _settle(lambda: client.set_experiment_tag(experiment, name, value))


def _settle(write: Callable[[], object]) -> None:
    """Write what other records may write at this moment too: MLflow refuses one of two new equals, and takes it again.

    It looks for a dataset or a tag, then inserts it, and its database lets only one of two writers do so. The other
    finds it there when it asks again.
    """
    for _ in range(_COLLISIONS):
        try:
            write()
            return
        except MlflowException:
            time.sleep(random.uniform(0, 0.2))
    write()


class _Evidence:
    """What one arm of one run left in the store."""

    def __init__(self, store: ArtifactStore, report: Manifest, index: int, run: RunSpec, arm: Arm) -> None:
        inputs, place = report.inputs, f"{index:03d}/{arm.role}"
        self.arm = arm
        self.store = store
        self.model = store.ref(run.made_in(arm), inputs[f"{place}/model"])
        self.scores = store.ref("evaluate", inputs[f"{place}/scores"])
        self.poison = store.ref("poison", inputs[f"{index:03d}/poison"])
        self.judged = {"filter": store.ref("filter", inputs[f"{place}/filter"])} if f"{place}/filter" in inputs else {}
        for detector in run.detectors:
            if (role := f"{place}/{detector.kind}/detection") in inputs:
                self.judged[detector.kind] = store.ref("detect", inputs[role])

    def measured(self) -> dict[str, float]:
        """What evaluation measured, by ``name/condition/probe``."""
        found = self.store.manifest(self.scores).summary["measurements"]
        return {name: value for name, value in found.items() if value is not None}

    def facts(self, run: RunSpec) -> Iterator[Metric]:
        """What figures are drawn over: number of poisons, of training images, of parameters, ..."""
        poison = self.store.manifest(self.poison)
        images = self.store.manifest(self.store.ref("ingest", poison.inputs["dataset"]))
        is_clean, model = self.arm.trained_on == "clean", self.store.manifest(self.model)
        for name, value in covariates(run, is_clean, model, poison, images).items():
            yield Metric(f"facts/{name}", value, 0, 0)

    def curves(self) -> Iterator[Metric]:
        """Training curves, thinned; none of a repair that trains nothing."""
        if "curves.parquet" not in self.store.manifest(self.model).files:
            return
        table = pq.read_table(self.store.fetch(self.model, ["curves.parquet"]) / "curves.parquet").to_pydict()
        by_name: dict[str, list[tuple[int, float]]] = {}
        for step, name, value in zip(table["step"], table["name"], table["value"], strict=True):
            by_name.setdefault(name, []).append((step, value))
        for name, points in by_name.items():
            stride = max(1, len(points) // _CURVE_POINTS)
            for step, value in points[::stride]:
                yield Metric(f"curve/{name}", value, 0, step)


def system_metrics(performance: Mapping[str, Any]) -> Iterator[Metric]:
    """Speed, memory and device use of a training, at their times, as MLflow's page of system metrics takes them."""
    series = performance["series"]
    ends = [(round(1000 * unix_s), step) for unix_s, step in zip(series["unix_s"], series["step"], strict=True)]
    points = {name: list(zip(ends, values, strict=True)) for name, values in series.items()}
    points |= {name: [(ends[-1], value)] for name, value in performance.items() if name.startswith("peak_")}
    for name, (shown, factor) in _SYSTEM.items():
        for (unix_ms, step), value in points.get(name, ()):
            if value is not None:
                yield Metric(f"system/{shown}", factor * value, unix_ms, step)


class _Child:
    """The record of one encoder under one test."""

    def __init__(self, evidence: _Evidence, run: RunSpec, figures: Mapping[str, float], report: str) -> None:
        self._evidence, self._run, self.figures, self.encoder = evidence, run, figures, evidence.model.key
        tags = {
            "arm": evidence.arm.label,
            "variant": run.variant or "main",
            "method": run.train.method.kind,
            "attack": run.attack.kind,
            "defence": evidence.arm.name or "none",
            "pair": pair_of(run).label,
            "seed": str(run.seed),
            "model_key": evidence.model.key,
            "scores_key": evidence.scores.key,
            "report": report,
        }
        self.tags = {name: to_printable_line(value) for name, value in tags.items()} | _SOURCE
        images = evidence.store.manifest(evidence.scores).inputs["dataset"]
        self.inputs = [_dataset_input(evidence.store, evidence.store.ref("ingest", images), "evaluation")]
        if evidence.arm.trained_on != "clean":
            self.inputs.append(_dataset_input(evidence.store, evidence.poison, "poison"))

    def _metrics(self) -> Iterator[Metric]:
        """The headline, then what the report shows and what needs no probe; the rest is in the report's table."""
        for name, value in self.figures.items():
            yield Metric(name, value, 0, 0)
        evidence, measured = self._evidence, self._evidence.measured()
        probes = {name.rpartition("/")[2] for name in measured}
        shown = {*headline_probes(probes), mlflow_view.probe_shown(measured), *_ON_FEATURES}
        shown |= {probe for probe in probes if is_of_plugin(probe)}
        for name, value in measured.items():
            if name.rpartition("/")[2] in shown and ":" not in name.partition("/")[0]:  # not of each class
                yield Metric(_metric_name(name), value, 0, 0)
        model = evidence.store.manifest(evidence.model)
        yield Metric("seconds/train", model.seconds, 0, 0)
        yield Metric("seconds/evaluate", evidence.store.manifest(evidence.scores).seconds, 0, 0)
        yield from evidence.facts(self._run)
        yield from evidence.curves()
        for who, ref in evidence.judged.items():
            for name, value in evidence.store.manifest(ref).summary["measurements"].items():
                yield Metric(_metric_name(f"{name}/{who}"), value, 0, 0)
        if "performance" in model.summary:  # not of artifacts made before it was measured
            yield from system_metrics(model.summary["performance"])

    def write(self, client: mlflow.MlflowClient, experiment: str, parent_id: str, model: str) -> tuple[str, set[str]]:
        """Write it; the id of its encoder's ``model``, which is made unless there is one, and its metrics' names."""
        evidence, store, metrics = self._evidence, self._evidence.store, list(self._metrics())
        name = to_printable_line(f"{evidence.arm.label}, {self._run.label}")[:_MAX_NAME]
        child = client.create_run(experiment, run_name=name, tags={**self.tags, "mlflow.parentRunId": parent_id})
        run_id = str(child.info.run_id)
        params = [*_params(self._run.model_dump(mode="json")), Param("arm", evidence.arm.label)]
        client.log_batch(run_id, metrics=metrics[:_BATCH], params=params)
        for start in range(_BATCH, len(metrics), _BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
        model = model or _point_to_encoder(client, experiment, run_id, evidence, self._run)
        client.log_inputs(run_id, self.inputs, [LoggedModelInput(model)])
        if "neighbours.npz" in store.manifest(evidence.scores).files:
            file = store.fetch(evidence.scores, ["neighbours.npz"]) / "neighbours.npz"
            with TemporaryDirectory() as folder:
                sheet = Path(folder) / "triggered_and_nearest.png"
                sheet.write_bytes(mlflow_view.example_sheet(file))
                client.log_artifact(run_id, str(sheet), "examples")
        client.set_terminated(run_id, "FINISHED")
        return model, {metric.key for metric in metrics}


def _point_to_encoder(
    client: mlflow.MlflowClient, experiment: str, run_id: str, evidence: _Evidence, run: RunSpec
) -> str:
    """A model of MLflow whose weights stay in the store: its signature, and where they are; its id."""
    side_px = run.evaluation.crop_px or run.dataset.frame_px or run.dataset.resident_px
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, 3, side_px, side_px), "images")]),
        Schema([TensorSpec(np.dtype("float32"), (-1, -1), "features")]),
    )
    place = to_printable_line(evidence.model.uri)
    name = f"{evidence.model.stage}-{evidence.model.key[:12]}"
    tags = {"mlflow.model.isExternal": "true", "arm": evidence.arm.label, "uri": place}
    model = client.create_logged_model(experiment, name, run_id, tags, {"uri": place[:500]}, "encoder")
    with TemporaryDirectory() as folder:
        metadata = {"mlflow.model.isExternal": True, "uri": place}
        told = Model(model.artifact_location, run_id, signature=signature, model_id=model.model_id, metadata=metadata)
        told.save(str(Path(folder) / "MLmodel"))
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _dataset_input(store: ArtifactStore, ref: ArtifactRef, context: str) -> DatasetInput:
    source = json.dumps({"uri": to_printable_line(ref.uri)})
    name = f"{ref.stage}-{ref.key[:12]}"
    dataset = Dataset(name=name, digest=store.manifest(ref).digest[:36], source_type="artifact_store", source=source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _summary(
    client: mlflow.MlflowClient,
    run_id: str,
    spec: ReportSpec,
    report: ArtifactRef,
    store: ArtifactStore,
    children: Sequence[_Child],
) -> None:
    """The parent: the answer, its key figures, what it was made of and the page."""
    manifest = store.manifest(report)
    rows = [(child.tags, child.figures) for child in children]
    metrics = [Metric(_metric_name(name), value, 0, 0) for name, value in mlflow_view.means(rows).items()]
    params = [
        Param("recipe", to_printable_line(spec.recipe)[:500]),
        Param("num_runs", str(len(spec.runs))),
        *_params(spec.runs[0].train.model_dump(mode="json"), "train."),
    ]
    answer = [mlflow_view.literal(line) for line in manifest.summary["answer"].splitlines()]
    note = "\n\n".join((f"**{mlflow_view.literal(spec.question)}**", *answer))
    tags = {"mlflow.note.content": note[:8000], **_SOURCE}
    if commit := manifest.versions.get("commit"):
        tags["mlflow.source.git.commit"] = commit
    tags["mlflow.loggedArtifacts"] = json.dumps([{"path": "comparison.json", "type": "table"}])
    for start in range(0, max(1, len(metrics)), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
    client.log_batch(run_id, params=params, tags=[RunTag(name, value) for name, value in tags.items()])
    with TemporaryDirectory() as scratch:
        table = Path(scratch) / "comparison.json"
        table.write_text(json.dumps(mlflow_view.comparison(rows)))
        client.log_artifact(run_id, str(table))
    folder = store.fetch(report)
    for name in ("report.html", "report.md", "measurements.json", "measurements.parquet"):
        client.log_artifact(run_id, str(folder / name), "report")
    for figure in sorted((folder / "figures").iterdir()):
        client.log_artifact(run_id, str(figure), "report/figures")


def _params(value: Mapping[str, Any], prefix: str = "") -> list[Param]:
    return [Param(name, to_printable_line(str(one))[:500]) for name, one in flatten(value, prefix)]


def _metric_name(name: str) -> str:
    """MLflow takes letters, digits, and _ - . : / and blanks."""
    return "".join(character if character.isalnum() or character in "_-.:/ " else "_" for character in name).rstrip("/")


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` as ``("a.b", 1)``."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flatten(inner, f"{prefix}{name}." if isinstance(inner, Mapping) else f"{prefix}{name}")
    else:
        yield prefix, value
