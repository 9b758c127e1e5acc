"""Progress where stderr is a log, and what a shell shows of the rest."""

import io
import json
import logging
import sys

import pytest

from flows.terminal.console import ProgressLog, show_progress
from ssl_backdoor.errors import SpecError
from ssl_backdoor.events import LOG, log_context, log_event
from ssl_backdoor.progress import Progress
from tasks.logs import attach_handlers


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_a_log_gets_a_line_now_and_then_with_rate_and_time_left() -> None:
    clock, kept = _Clock(), _Kept()
    lines = ProgressLog(every_s=30.0, clock=clock)
    with attach_handlers(kept), log_context(key="4f2a"):
        for clock.now_s, done in ((0.0, 1_000), (10.0, 2_000), (20.0, 3_000), (40.0, 5_000)):
            lines("train suspect", Progress(done, 11_000, "images", "loss 5.1"))
    (record,) = kept.records
    assert record.getMessage() == "5,000 of 11,000 images, 100 images/s, 0:01:00 left, loss 5.1"
    assert record.fields == {
        "key": "4f2a",
        "title": "train suspect",
        "done": 5_000,
        "total": 11_000,
        "unit": "images",
        "per_second": 100.0,
        "left_s": 60,
    }


def test_stages_that_ended_or_stand_still_are_not_told_again() -> None:
    clock, kept = _Clock(), _Kept()
    lines = ProgressLog(every_s=30.0, clock=clock)
    with attach_handlers(kept):
        lines("poison", Progress(5, 5, "images"))
        lines("all stages", Progress(1, 9, "stages"))
        clock.now_s = 31.0
        lines("all stages", Progress(2, 9, "stages"))
        clock.now_s = 62.0
        lines("train", Progress(1, 2, "images"))
    told = [(record.fields["title"], record.getMessage()) for record in kept.records]
    assert told == [("all stages", "2 of 9 stages, 0:03:37 left"), ("train", "1 of 2 images")]


def all_kinds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a shell without a terminal shows of a stage that begins, progress, and a warning."""
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with show_progress(), log_context(title="train suspect", stage="train", key="4f2a90c1b2d3e4"):
        log_event("begins", "begins on a host")
        log_event("progress", "1 of 2 steps")
        LOG.warning("MLflow could not be written")
    return err.getvalue().splitlines()


def test_a_shell_is_quiet_but_for_progress_and_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, warning = (line.split(" ", 1)[1] for line in all_kinds(monkeypatch))
    assert progress == "train suspect (train/4f2a90c1b2d3): 1 of 2 steps"
    assert warning == "WARNING train suspect (train/4f2a90c1b2d3): MLflow could not be written"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_warnings_once_and_without_secrets_beside_its_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    err, elsewhere = _Terminal(), _Kept()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(logging.getLogger(), "handlers", [elsewhere])  # as Prefect's own
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary-77aa")
    with show_progress() as listen:
        listen("train suspect", Progress(1, 2, "steps"))
        LOG.warning("MLflow could not be written (canary-77aa)")
        log_event("failed", "failed: the last word is the command's", logging.ERROR)
    shown_text = err.getvalue()
    assert shown_text.count("WARNING MLflow could not be written (***)") == 1
    assert "train suspect" in shown_text
    assert "failed" not in shown_text
    assert elsewhere.records == []


def test_a_shell_tells_programs_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_BACKDOOR_LOG", "json")
    told = [json.loads(line) for line in all_kinds(monkeypatch)]
    assert [(one["level"], one["event"]) for one in told] == [
        ("info", "begins"),
        ("info", "progress"),
        ("warning", "message"),
    ]
    assert {(one["stage"], one["key"], one["title"]) for one in told} == {("train", "4f2a90c1b2d3e4", "train suspect")}


def test_another_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_BACKDOOR_LOG", "xml")
    with pytest.raises(SpecError, match="SSL_BACKDOOR_LOG must be lines or json, found 'xml'"), show_progress():
        pass


@pytest.mark.parametrize("before", [Progress(0, 500, "images"), Progress(60, 140, "steps")])
def test_rate_and_time_left_begin_anew_with_another_unit_or_after_a_step_back(before: Progress) -> None:
    clock, kept = _Clock(), _Kept()
    lines = ProgressLog(every_s=30.0, clock=clock)
    with attach_handlers(kept):
        for clock.now_s, progress in (
            (0.0, before),
            (10.0, Progress(40, 140, "steps")),
            (40.0, Progress(100, 140, "steps")),
        ):
            lines("train", progress)
    assert [record.getMessage() for record in kept.records] == ["100 of 140 steps, 2 steps/s, 0:00:20 left"]
