"""Recipes of the user's own: a function in a Python file, a spec file, a report of the store.

Only the command line loads them: a flow that others start must not read files of the worker's machine.
"""

from pathlib import Path

from pydantic import ValidationError

from flows.commands.results import resolve
from flows.overrides import describe
from flows.recipes import RECIPES, Recipe, Sized, load_own, register
from flows.spec_files import SUFFIXES, read
from ssl_backdoor.data.sources import source_digest
from ssl_backdoor.errors import SpecError
from ssl_backdoor.identity import canonical_json
from ssl_backdoor.specs import DatasetSpec, FilesSourceSpec, OtherDataSpec, ReportSpec
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from tasks.planner import Digest


def is_file(name: str) -> bool:
    """Whether ``name`` is that of a spec file, or of a recipe in a Python file."""
    return Path(name).suffix.lower() in SUFFIXES or ".py:" in name


def load(name: str, store_uri: str) -> Digest:
    """Make ``name`` a recipe, unless it is one of the project's; how the data of its runs are told apart.

    The data of a report of the store need not be there: what they were is known.

    Raises:
        SpecError: the file cannot be read, or is no spec; there is no such report, or it is not whole.
        StoreError: the store cannot be read.
    """
    if ".py:" in name:
        load_own(name)
    elif is_file(name):
        _register(name, read(name), needs_data=True)
    elif name.startswith("report/"):
        store, ref = resolve(name, store_uri)
        stored = store.manifest(ref).spec
        try:
            report = ReportSpec.model_validate(stored)
        except ValidationError as error:
            raise SpecError(
                f"{name} was made with other specs than there are now, or with a --plugin that is to be given again: "
                f"{describe(error, stored, (ReportSpec,))}"
            ) from error
        if report.missing:
            raise SpecError(
                f"{name} is without {len(report.missing)} run(s) that failed: run its recipe {report.recipe} again"
            )
        _register(name, report, needs_data=False)
        return _known_digest(store, ref, report)
    return source_digest


def _register(name: str, report: ReportSpec, *, needs_data: bool) -> None:
    """Where settings change it, its question follows from the runs as that of the recipe does which it came from."""
    needs_data = needs_data and any(isinstance(run.dataset.source, FilesSourceSpec) for run in report.runs)
    base = RECIPES.get(report.recipe)
    known = base.mini if isinstance(base, Sized) else base
    names = (known.name_variant, known.ask) if known else (None, None)
    register(name, Recipe(lambda *_: report, 1, 1, 1, needs_data, report.question, *names, is_fixed=True))


def _known_digest(store: ArtifactStore, ref: ArtifactRef, report: ReportSpec) -> Digest:
    """Digests of the data that ``report`` was made from; of data that are given instead their own."""
    wanted = {canonical_json(run.dataset) for run in report.runs}
    wanted |= {canonical_json(run.probe_on.dataset) for run in report.runs if isinstance(run.probe_on, OtherDataSpec)}
    known: dict[str, str] = {}
    for role, key in store.manifest(ref).inputs.items():
        if (kind := role.partition("/")[2]) in ("poison", "clean/scores") and not wanted <= known.keys():
            stage = store.ref("poison" if kind == "poison" else "evaluate", key)
            images = store.manifest(store.ref("ingest", store.manifest(stage).inputs["dataset"]))
            dataset = DatasetSpec.model_validate(images.spec["dataset"])
            known[canonical_json(dataset)] = images.inputs.get("source", "")

    def digest(dataset: DatasetSpec, data: str | None, test_data: str | None) -> str:
        if data is None and test_data is None and isinstance(dataset.source, FilesSourceSpec):
            if (found := known.get(canonical_json(dataset))) is None:
                raise SpecError("these runs look at other data than those of the report: give them with --data PATH")
            return found
        return source_digest(dataset, data, test_data)

    return digest
