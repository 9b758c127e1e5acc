"""The whole experiment, one direction: ingest -> poison -> train -> defend -> evaluate -> report."""

from collections.abc import Hashable, Iterator, Mapping, Sequence

from ssl_backdoor.specs import NoDefenceSpec, OtherDataSpec, ReportSpec, RunSpec
from ssl_backdoor.stages import run_name
from ssl_backdoor.store import ArtifactRef
from tasks.lab import Lab
from tasks.verbs import Verbs

Evidence = Mapping[str, ArtifactRef]
"""Of one run: role -> artifact."""


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


def attack_and_defence(lab: Verbs, run: RunSpec, name: str, clean: str) -> Iterator[tuple[str, ArtifactRef]]:
    """Saha et al. 2022 and Carlini & Terzis 2022 in six verbs.

    An attacker poisons a few images or adds a few pairs; an encoder is trained on them, another on the clean data
    under the same seed; each is repaired on trusted data; all are probed on clean, triggered and target images.
    ``name`` and ``clean`` are the run's and its control's for people.
    """
    seed = run.seed
    images = lab.ingest(run.dataset)
    probed = lab.ingest_other(run.probe_on.dataset) if isinstance(run.probe_on, OtherDataSpec) else images
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
            run.evaluation,
            run.attack,
            seed,
            f"{arm}, {name}",
            is_other=probed != images,
            dataset=probed,
            model=model,
            poison=poisoned,
        )
        yield f"{arm}/scores", scores


def check_attacks(lab: Lab, runs: Sequence[RunSpec]) -> None:
    """Ingest, and poison for one seed of each attack: a mistake in either is told before any training begins.

    Raises:
        SslBackdoorError: what one of these stages raised.
    """
    one_each: dict[Hashable, RunSpec] = {}
    for run in runs:
        one_each.setdefault((run.dataset, run.attack), run)
    for run in one_each.values():
        lab.poison(run.attack, lab.ingest(run.dataset), run.seed, run_name(run))
    for run in runs:
        if isinstance(run.probe_on, OtherDataSpec):
            lab.ingest_other(run.probe_on.dataset)
    lab.wait()


def state_runs(lab: Verbs, runs: Sequence[RunSpec]) -> list[Evidence]:
    """State every stage of every run; the evidence of each run, as it will be."""
    names = apart([run_name(run) for run in runs], runs)
    labels = [f"control, {f'{run.variant}, ' if run.variant else ''}seed {run.seed}" for run in runs]
    cleans = apart(labels, [(run.dataset, run.train) for run in runs])
    return [
        dict(attack_and_defence(lab, run, name, clean)) for run, name, clean in zip(runs, names, cleans, strict=True)
    ]


def numbered(evidence: Sequence[Evidence]) -> Evidence:
    """The evidence of all runs under "RUN/ROLE", as a report reads it."""
    return {f"{index:03d}/{role}": ref for index, one in enumerate(evidence) for role, ref in one.items()}


def every_run(lab: Lab, report: ReportSpec) -> ArtifactRef:
    """Answer ``report.question`` with all of its runs; the first failure ends the flow.

    Raises:
        SslBackdoorError: what a stage raised.
    """
    check_attacks(lab, report.runs)
    page = lab.report(report, numbered(state_runs(lab, report.runs)))
    lab.wait()
    return page
