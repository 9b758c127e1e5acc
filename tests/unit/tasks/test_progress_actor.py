"""What the flow hears from its workers."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest

from ssl_backdoor.errors import TrainingError, UserError
from ssl_backdoor.events import context_ids, log_context
from ssl_backdoor.progress import Progress
from ssl_backdoor.specs import DatasetSpec, Resources, ScenesSourceSpec
from ssl_backdoor.stages import IngestStage, StageCall
from tasks import ray_fit
from tasks.progress_actor import ProgressActor
from tasks.ray_fit import ProgressMonitor

CALL = StageCall(IngestStage(dataset=DatasetSpec(source=ScenesSourceSpec())), source="scenes", title="ingest, pair 3")


def event(kind: str, key: str) -> dict[str, object]:
    return {"event": kind, "levelno": logging.INFO, "levelname": "INFO", "msg": kind, "fields": {"key": key}}


def test_each_event_is_read_once() -> None:
    actor = ProgressActor()
    actor.add_event(event("begins", "a"))
    assert actor.drain()[1] == [event("begins", "a")]
    assert actor.drain()[1] == []


def test_a_stage_that_begins_once_more_is_a_warning() -> None:
    actor = ProgressActor()
    for kind, key in (("begins", "a"), ("begins", "b"), ("resumes", "a"), ("begins", "a"), ("begins", "a")):
        actor.add_event(event(kind, key))
    told = [(one["levelname"], one["fields"].get("attempt"), one["msg"]) for one in actor.drain()[1]]
    assert told == [
        ("INFO", None, "begins"),
        ("INFO", None, "begins"),
        ("INFO", None, "resumes"),
        ("WARNING", 2, "begins, attempt 2"),
        ("WARNING", 3, "begins, attempt 3"),
    ]


def test_an_actor_that_was_restarted_counts_a_stages_time_from_what_it_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [10.0]
    monkeypatch.setattr("tasks.progress_actor.time.monotonic", lambda: now_s[0])
    actor = ProgressActor()
    assert actor.elapsed_s("a") == 0.0
    actor.set_progress("a", Progress(1, 2, "steps"))
    now_s[0] = 15.0
    actor.set_progress("a", Progress(2, 2, "steps"))
    assert actor.elapsed_s("a") == 5.0
    actor.start_stage("a")
    assert actor.elapsed_s("a") == 0.0


def test_progress_of_a_stage_has_its_ids_and_that_of_the_flow_the_flows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, dict[str, str]]] = []
    with log_context(flow_run_id="run-1"):
        monitor = ProgressMonitor(lambda title, _: heard.append((title, dict(context_ids()))))
    monitor.add_stage(CALL)
    with log_context(flow_run_id="run-1", **CALL.ids):
        monitor.finish_stage()
    progress = ProgressActor()
    progress.set_progress(CALL.title, Progress(1, 2, "images"))
    read = SimpleNamespace(remote=lambda **_: None)
    monkeypatch.setattr("tasks.ray_fit.ray.get", lambda answer, timeout: progress.drain())
    monkeypatch.setattr(monitor, "_actor", SimpleNamespace(drain=read))
    monitor.close()
    monitor._context.copy().run(monitor._poll)
    assert heard == [
        ("all stages", {"flow_run_id": "run-1"}),
        ("ingest, pair 3", {"flow_run_id": "run-1", **CALL.ids}),
    ]


def poll(
    monkeypatch: pytest.MonkeyPatch, monitor: ProgressMonitor, clock: SimpleNamespace, answer: Callable[..., object]
) -> None:
    """Poll to the end, on ``clock``, an actor that is read by ``answer``."""
    monkeypatch.setattr(ray_fit, "_POLL_S", 0.0)
    monkeypatch.setattr(ray_fit, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    monkeypatch.setattr(ray_fit.ray, "get", answer)
    monkeypatch.setattr(monitor, "_actor", SimpleNamespace(drain=SimpleNamespace(remote=lambda: None)))
    monitor._poll()


def test_a_slow_listener_is_not_taken_for_a_lost_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now_s=0.0)

    def listen(*_: object) -> None:
        clock.now_s += 60.0  # a page that does not answer

    monitor, actor = ProgressMonitor(listen), ProgressActor()
    actor.set_progress("train", Progress(1, 2, "steps"))

    def answer(*_: object, **__: object) -> object:
        if clock.now_s == 0.0:
            return actor.drain()
        monitor.close()
        raise ray_fit.ray.exceptions.GetTimeoutError

    poll(monkeypatch, monitor, clock, answer)
    assert clock.now_s == 60.0
    assert not monitor._is_lost


def test_a_slow_first_worker_is_waited_for_and_silence_after_it_is_a_lost_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, monitor, actor = SimpleNamespace(now_s=0.0), ProgressMonitor(lambda *_: None), ProgressActor()

    def answer(*_: object, timeout: float) -> object:
        clock.now_s += timeout
        if clock.now_s == 100.0:
            return actor.drain()
        raise ray_fit.ray.exceptions.GetTimeoutError

    poll(monkeypatch, monitor, clock, answer)
    assert clock.now_s == 121.0
    with pytest.raises(TrainingError, match=r"checkpoints are kept; start the same run again to resume$"):
        monitor.raise_if_aborted()


def test_ray_is_left_only_when_no_stage_waits_on_it_and_none_begins_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that Ray is left under may never return; flows that were told to end hung."""
    monitor, waits, begun = ProgressMonitor(lambda *_: None), [], threading.Event()

    def wait(refs: list[object], timeout: float) -> tuple[list[object], list[object]]:
        waits.append("begun")
        begun.set()
        time.sleep(0.3)
        waits.append("over")
        return [], refs

    monkeypatch.setattr(ray_fit.ray, "wait", wait)
    monkeypatch.setattr(ray_fit, "connect", lambda _: None)
    monkeypatch.setattr(ray_fit, "check_room", lambda _: None)
    monkeypatch.setattr(ray_fit, "_ray_task", lambda *_: SimpleNamespace(remote=lambda *_: None))
    monkeypatch.setattr(monitor, "_actor", object())
    stage = partial(ray_fit.run_on_ray, CALL, "", Resources(), monitor)
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(stage), pool.submit(stage)]
        assert begun.wait(10.0)
        monitor.close()
        assert waits[-1] == "over"
        assert waits.count("begun") == waits.count("over")
        before = len(waits)
        with pytest.raises(CancelledError):
            stage()
        assert [type(end.exception()) for end in ends] == [CancelledError, CancelledError]
        assert len(waits) == before


@pytest.mark.parametrize("address", ["127.0.0.1:70000", f"{'a' * 64}:6379"])
def test_an_address_that_cannot_be_is_refused_in_one_sentence(address: str) -> None:
    with pytest.raises(UserError, match=rf"^no Ray cluster answers at {address} \(.*\): start it .* unset RAY_ADDRESS"):
        ray_fit._check_answers(address)
