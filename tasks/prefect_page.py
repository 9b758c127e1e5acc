"""What Prefect's page shows of a run besides its stages: their progress, the answer, and links.

A view, not the record: all of it can be made again from the store.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.events.schemas.events import Event, RelatedResource, Resource
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run

from ssl_backdoor.events import fields_of, log_event
from ssl_backdoor.progress import Progress
from ssl_backdoor.store import ArtifactRef, ArtifactStore
from tasks.logs import LineFormatter, is_progress

_EVERY_S = 5.0


@contextmanager
def ignore_prefect_outage() -> Iterator[None]:
    """Ignore, with a warning, that Prefect's server does not answer: the run continues without its page."""
    try:
        yield
    except httpx.HTTPError as error:
        log_event("unseen", f"Prefect's page could not be written ({type(error).__name__})", logging.WARNING)


class StageProgress:
    """A progress artifact for the whole flow and one for each long stage, updated every few seconds."""

    def __init__(self, flow_run_id: UUID, every_s: float = _EVERY_S) -> None:
        self._flow_run_id = flow_run_id
        self._every_s = every_s
        self._lock = threading.Lock()
        self._made: dict[str, UUID] = {}
        self._reported_s: dict[str, float] = {}

    def __call__(self, title: str, progress: Progress) -> None:
        """Show the progress of ``title``."""
        now = time.monotonic()
        with self._lock:
            began_s = self._reported_s.setdefault(title, now)
            is_over = progress.done >= progress.total
            if now - began_s < self._every_s and not (is_over and title in self._made):
                return
            self._reported_s[title] = now
            with ignore_prefect_outage():
                self._update_artifact(title, 100.0 * progress.done / max(1, progress.total))

    def _update_artifact(self, title: str, percent: float) -> None:
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


class RunLog(APILogHandler):
    """Events of a flow under Logs on its page, and on the pages of its task runs; progress has its artifacts."""

    def __init__(self, flow_run_id: UUID) -> None:
        super().__init__()
        self._flow_run_id = flow_run_id
        self.setFormatter(LineFormatter(has_time=False))  # the page says when, and how grave

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record to Prefect's server, in a batch with others."""
        if is_progress(record):
            return
        record.flow_run_id, record.task_run_id = self._flow_run_id, fields_of(record).get("task_run_id")
        super().emit(record)


def publish(page: ArtifactRef, store: ArtifactStore, record_url: str) -> None:
    """The finished report as artifacts of the flow run: its answer and tables, its place, its record in MLflow."""
    text = (store.fetch(page, ["report.md"]) / "report.md").read_text(encoding="utf-8")
    with ignore_prefect_outage():
        create_markdown_artifact(f"{text}\n\nArtifact: `{page.uri}`\n", key="report", description="Answer and tables")
        if record_url.startswith("http"):
            create_link_artifact(record_url, "The record in MLflow, with the page", key="mlflow")


def announce(text: str) -> None:
    """How the run ended, as an event of it: `prefect deployment run --watch` shows events, and of a state its name."""
    event = Event(
        event="ssl-backdoor.ended",
        resource=Resource({"prefect.resource.id": f"ssl-backdoor.run.{flow_run.id}", "prefect.resource.name": text}),
        related=[
            RelatedResource(
                {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.role": "flow-run"}
            )
        ],
    )
    with ignore_prefect_outage(), get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
