"""The whole experiment, one direction: ingest -> poison -> train -> defend -> evaluate -> report."""

import logging
from collections.abc import Hashable, Iterator, Sequence

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from ssl_backdoor.specs import NoDefenceSpec, ReportSpec, Resources, RunSpec, Stage
from ssl_backdoor.stages import run_name
from ssl_backdoor.store import ArtifactRef, open_store
from tasks.lab import Lab
from tasks.ray_fit import Listener, Watcher
from tasks.stages import Place


def apart(names: Sequence[str], things: Sequence[Hashable]) -> list[str]:
    """``names``, numbered where different things share one."""
    numbers: dict[str, dict[Hashable, int]] = {}
    for name, thing in zip(names, things, strict=True):
        same = numbers.setdefault(name, {})
        same.setdefault(thing, len(same) + 1)
    return [
        name if len(numbers[name]) == 1 else f"{name} [{numbers[name][thing]}]"
        for name, thing in zip(names, things, strict=True)
    ]


def attack_and_defence(lab: Lab, run: RunSpec, name: str, clean: str) -> Iterator[tuple[str, ArtifactRef]]:
    """Saha et al. 2022 and Carlini & Terzis 2022 in six verbs.

    An attacker poisons a few images or adds a few pairs; an encoder is trained on them, another on the clean data
    under the same seed; each is repaired on trusted data; all are probed on clean, triggered and target images.
    ``name`` and ``clean`` are the run's and its control's for people.
    """
    seed = run.seed
    images = lab.ingest(run.dataset)
    poisoned = lab.poison(run.attack, images, seed, name)
    models = {
        "control": lab.train(run.train, seed, clean, dataset=images),
        "suspect": lab.train(run.train, seed, f"suspect, {name}", dataset=images, poison=poisoned),
    }
    if not isinstance(run.defence, NoDefenceSpec):
        models |= {
            "student": lab.defend(run.defence, models["suspect"], images, seed, f"student, {name}"),
            "distilled_control": lab.defend(run.defence, models["control"], images, seed, clean),
        }
    yield "poison", poisoned
    for arm, model in models.items():
        yield f"{arm}/model", model
        scores = lab.evaluate(
            run.evaluation, run.attack, seed, f"{arm}, {name}", dataset=images, model=model, poison=poisoned
        )
        yield f"{arm}/scores", scores


@flow(
    name="experiment",
    flow_run_name="{report.recipe}",
    task_runner=ThreadPoolTaskRunner(max_workers=256),  # type: ignore[arg-type]  # prefect's decorator is invariant in the future's type
    validate_parameters=False,
    persist_result=False,
)
def experiment(
    report: ReportSpec,
    *,
    data: str | None,
    store_uri: str,
    resources: Resources,
    listen: Listener,
    until: Stage = "report",
) -> ArtifactRef:
    """Answer ``report.question`` with all of its runs; stages that the store already holds are reused."""
    watcher = Watcher(listen)
    lab = Lab(Place(store_uri, resources, watcher), data, until)
    try:
        for run in report.runs:
            lab.poison(run.attack, lab.ingest(run.dataset), run.seed, run_name(run))
        lab.wait()  # a mistake in the data or the attack is told before any training begins
        runs = report.runs
        names = apart([run_name(run) for run in runs], runs)
        cleans = apart([f"control, seed {run.seed}" for run in runs], [(run.dataset, run.train) for run in runs])
        evidence = {
            f"{index:03d}/{role}": ref
            for index, (run, name, clean) in enumerate(zip(runs, names, cleans, strict=True))
            for role, ref in attack_and_defence(lab, run, name, clean)
        }
        page = lab.report(report, evidence)
        lab.wait()
    finally:
        watcher.close()
    if until == "report":
        from tasks.tracking import record  # MLflow takes seconds to import

        recorded = record(page, open_store(store_uri), return_state=True)
        if not recorded.is_completed():
            logging.getLogger("ssl_backdoor").warning(
                "MLflow could not be written (%s); the report is in the store, the same command records it later.",
                recorded.message,
            )
    return page
