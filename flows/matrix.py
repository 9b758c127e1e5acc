"""Many cells at once: {methods} x {attacks} x {defences} x {pairs} x {seeds}, and a report of those that came through.

What cells share is computed once (one ingest, one clean encoder a method and seed), as many stages run at once as the
Ray cluster holds, and a cell that fails leaves the others: it is listed with its cause. A rerun does what is missing.
"""

from collections.abc import Mapping, Sequence

from flows.overrides import of_runs
from flows.pipeline import Evidence, check_plan, number_evidence, plan_runs
from ssl_backdoor.errors import TrainingError
from ssl_backdoor.specs import ReportSpec
from ssl_backdoor.store import ArtifactRef
from tasks.scheduler import StageScheduler


class IncompleteError(TrainingError):
    """Some cells did not come through; the others have their ``page``."""

    def __init__(self, missing: Sequence[str], page: ArtifactRef):
        super().__init__(f"{len(missing)} cell(s) did not come through; the first: {missing[0]}")
        self.missing = tuple(missing)
        self.page = page


def run_matrix(scheduler: StageScheduler, report: ReportSpec) -> ArtifactRef:
    """Answer ``report.question`` with the cells that came through; those that failed are listed in ``missing``.

    Raises:
        SslBackdoorError: a mistake in the data or an attack, before any training begins.
        IncompleteError: some cells did not come through; the others are in its ``page``.
        TrainingError: no cell came through.
    """
    check_plan(scheduler, report)
    evidence = plan_runs(scheduler, report.runs)
    causes = scheduler.collect_failures()
    kept, missing = sift(report, evidence, causes)
    page = scheduler.report(kept, number_evidence(whole(evidence, causes)))
    scheduler.wait(page)
    if missing:
        raise IncompleteError(missing, page)
    return page


def whole(evidence: Sequence[Evidence], causes: Mapping[ArtifactRef, str]) -> list[Evidence]:
    """The evidence of the cells that came through."""
    return [one for one in evidence if not any(ref in causes for ref in one.values())]


def sift(
    report: ReportSpec, evidence: Sequence[Evidence], causes: Mapping[ArtifactRef, str]
) -> tuple[ReportSpec, tuple[str, ...]]:
    """``report`` over the cells that came through, and the others with their causes.

    Raises:
        TrainingError: none came through.
    """
    kept, missing = [], []
    for run, one in zip(report.runs, evidence, strict=True):
        cause = next((causes[ref] for ref in one.values() if ref in causes), None)
        if cause is None:
            kept.append(run)
        else:
            missing.append(f"{run.label}: {cause}")
    if not kept:
        raise TrainingError(f"none of the {len(report.runs)} cells came through; the first: {missing[0]}")
    return of_runs(report, tuple(kept)).model_copy(update={"missing": tuple(missing)}), tuple(missing)
