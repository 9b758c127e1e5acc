"""What Prefect's page shows of a run beside its stages: how far they are, the answer, and where to read on.

A window, not the record: all of it can be made again from the store.
"""

import threading
import time
from uuid import UUID

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from ssl_backdoor.progress import Progress
from ssl_backdoor.store import ArtifactRef, ArtifactStore

_EVERY_S = 5.0


class StageProgress:
    """A progress artifact for the whole flow and one for each long stage, brought up to date every few seconds."""

    def __init__(self, flow_run_id: UUID, every_s: float = _EVERY_S) -> None:
        self._flow_run_id = flow_run_id
        self._every_s = every_s
        self._lock = threading.Lock()
        self._made: dict[str, UUID] = {}
        self._told_s: dict[str, float] = {}

    def __call__(self, title: str, progress: Progress) -> None:
        """Show that ``title`` has come this far."""
        now = time.monotonic()
        with self._lock:
            began_s = self._told_s.setdefault(title, now)
            is_over = progress.done >= progress.total
            if now - began_s < self._every_s and not (is_over and title in self._made):
                return
            self._told_s[title] = now
            self._tell(title, 100.0 * progress.done / max(1, progress.total))

    def _tell(self, title: str, percent: float) -> None:
        with get_client(sync_client=True) as client:
            if title in self._made:
                client.update_artifact(self._made[title], ArtifactUpdate(data=percent))
                return
            made = client.create_artifact(
                ArtifactCreate(
                    key=None, type="progress", description=title, data=percent, flow_run_id=self._flow_run_id
                )
            )
            self._made[title] = made.id


def publish(page: ArtifactRef, store: ArtifactStore, record_url: str) -> None:
    """The finished report as artifacts of the flow run: its answer and tables, its place, its record in MLflow."""
    text = (store.fetch(page, ["report.md"]) / "report.md").read_text(encoding="utf-8")
    create_markdown_artifact(f"{text}\n\nArtifact: `{page.uri}`\n", key="report", description="Answer and tables")
    if record_url.startswith("http"):
        create_link_artifact(record_url, "The record in MLflow, with the page", key="mlflow")
