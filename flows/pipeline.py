"""The whole experiment, one direction: ingest -> poison -> train -> defend -> evaluate -> report."""

import logging
from collections.abc import Iterator

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from ssl_backdoor.specs import NoDefenceSpec, ReportSpec, Resources, RunSpec, Stage
from ssl_backdoor.stages import run_name
from ssl_backdoor.store import ArtifactRef, open_store
from tasks.lab import Lab
from tasks.ray_fit import Listener, Watcher
from tasks.stages import Place


def attack_and_defence(lab: Lab, run: RunSpec) -> Iterator[tuple[str, ArtifactRef]]:
    """Saha et al. 2022 in six verbs.

    An attacker puts a trigger on a few unlabelled images; an encoder is trained on them, another on the clean images
    under the same seed; each is distilled on trusted images; all are probed on clean and on triggered test images.
    """
    name, seed = run_name(run), run.seed
    images = lab.ingest(run.dataset)
    poisoned = lab.poison(run.attack, images, seed, name)
    models = {
        "control": lab.train(run.train, seed, f"control, seed {seed}", dataset=images),
        "suspect": lab.train(run.train, seed, f"suspect, {name}", dataset=images, poison=poisoned),
    }
    if not isinstance(run.defence, NoDefenceSpec):
        models |= {
            "student": lab.defend(run.defence, models["suspect"], images, seed, f"student, {name}"),
            "distilled_control": lab.defend(run.defence, models["control"], images, seed, f"control, seed {seed}"),
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
        evidence = {
            f"{index:03d}/{role}": ref
            for index, run in enumerate(report.runs)
            for role, ref in attack_and_defence(lab, run)
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
