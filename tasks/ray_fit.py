"""Where stages run: the only Ray code of the project.

A one-replica stage is a plain Ray task; Ray Train is used only when a training has several replicas. Both call the
same ``run_stage``, and both resume from the store's newest checkpoint when a worker process dies.
"""

import importlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ssl_backdoor.errors import SpecError, SslBackdoorError, TrainingError, UserError
from ssl_backdoor.events import log_context
from ssl_backdoor.progress import Progress
from ssl_backdoor.specs import Resources
from ssl_backdoor.stages import Finished, StageCall, run_stage
from ssl_backdoor.store import open_store
from tasks import embedded_ray
from tasks.logs import replay
from tasks.progress_actor import FLUSH_TIMEOUT_S, ProgressActor, WorkerReporter

Listener = Callable[[str, Progress], None]
_POLL_S = 1.0
_LOOK_S = 1.0  # at most, until a wait for an answer of Ray's sees that the flow has ended
_PATIENCE_S = 20.0  # Ray's own is a minute, and then it ends the process without a word
_START_S = 120.0  # until a first worker of Ray's runs on a busy machine
_CONNECT_S = 5.0
_connecting = threading.RLock()
_starter = ThreadPoolExecutor(1, "ray")  # the system ends Ray's processes with the very thread that started them
_ahead = ThreadPoolExecutor(1, "ray ahead")


def connect(resources: Resources) -> None:
    """Join the cluster of ``RAY_ADDRESS``, or start a local one sized to the machine. Idempotent.

    Raises:
        UserError: nothing answers at ``RAY_ADDRESS``.
    """
    with _connecting:
        if ray.is_initialized():
            return
        logging.getLogger("ray").setLevel(logging.ERROR)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        if address := os.environ.get("RAY_ADDRESS"):
            _check_answers(address)
            embedded_ray.read_token_anew()
            ray.init(address=address, job_config=embedded_ray.OwnModules(), **quiet)
            return
        asked = resources.parallel or resources.workers
        cpus = asked * resources.threads
        num_cpus = cpus if resources.parallel else max(os.cpu_count() or 1, cpus)
        _starter.submit(embedded_ray.start, num_cpus, **quiet).result()


def _check_answers(address: str) -> None:
    """Raise a clear ``UserError`` early: Ray itself would try for most of a minute, then say little."""
    if (place := re.fullmatch(r"(.+):(\d+)", address)) is None or "://" in address:
        return  # "auto" and the like
    try:
        socket.create_connection((place[1].strip("[]"), int(place[2])), timeout=_CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the last two: of a port and a name that cannot be
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UserError(
            f"no Ray cluster answers at {address} ({reason}): start it (`make up`), or fix or unset RAY_ADDRESS"
        ) from error


def connect_ahead(resources: Resources) -> None:
    """``connect``, and have workers import what stages do, but wait for nothing; what goes wrong a stage will tell."""
    _ahead.submit(_connect_and_warm, resources)


def _connect_and_warm(resources: Resources) -> None:
    with _connecting:  # who leaves meanwhile waits: asked after that, Ray would start once more by itself
        connect(resources)
        for _ in range(devices_of(resources)):
            _import_stages.options(num_cpus=resources.threads).remote()


@ray.remote(max_retries=0)  # one that is to be tried again when Ray is left makes it write to stderr
def _import_stages() -> None:
    importlib.import_module("ssl_backdoor.train.pretrain")
    importlib.import_module("ssl_backdoor.evaluate.evaluate")


def disconnect() -> None:
    """Leave the cluster; a local one ends with its workers. A call that still waits on Ray may then never return."""
    with _connecting:
        embedded_ray.stop()


class ProgressMonitor:
    """One actor and one polling thread for all stages of a flow; ``listen`` is called about once a second."""

    def __init__(self, listen: Listener) -> None:
        self.listen = listen
        self._lock = threading.Lock()
        self._actor: Any = None
        self._stop = threading.Event()
        self._num_stages = self._num_finished = 0
        self._polling: threading.Thread | None = None
        self._context = copy_context()  # events in it belong to the flow, not to one stage
        self._ids: dict[str, dict[str, str]] = {}
        self._is_lost = False
        self._on_begin: dict[str, Callable[[], None]] = {}
        self._waiting = 0
        self._fewer_wait = threading.Condition(self._lock)

    def add_stage(self, call: StageCall) -> None:
        """Count one more stage that is to be done."""
        with self._lock:
            self._num_stages += 1
            self._ids[call.title] = call.ids

    def finish_stage(self) -> None:
        """Count one stage as done, and report the progress of the whole flow."""
        with self._lock:
            self._num_finished += 1
            whole = Progress(self._num_finished, self._num_stages, "stages")
        self._context.copy().run(self.listen, "all stages", whole)

    def actor(self) -> Any:
        """The actor that workers post to, on the flow's own node; made on first use."""
        with self._lock:
            if self._actor is None:
                actor_class: Any = ray.remote(num_cpus=0, max_restarts=-1)(ProgressActor)
                self._actor = actor_class.options(scheduling_strategy=_here()).remote()
                self._polling = threading.Thread(
                    target=self._context.copy().run, args=(self._poll,), name="progress", daemon=True
                )
                self._polling.start()
            return self._actor

    @contextmanager
    def on_begin(self, call: StageCall, tell: Callable[[], None]) -> Iterator[None]:
        """In this block, call ``tell`` once a worker has begun with ``call``; never after it."""
        with self._lock:
            self._on_begin[call.key] = tell
        try:
            yield
        finally:
            with self._lock:
                self._on_begin.pop(call.key, None)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A stage waits on Ray in this block.

        Raises:
            TrainingError, CancelledError: as ``raise_if_aborted`` does.
        """
        with self._lock:
            self._waiting += 1
        try:
            self.raise_if_aborted()
            yield
        finally:
            with self._fewer_wait:
                self._waiting -= 1
                self._fewer_wait.notify_all()

    def close(self) -> None:
        """Stop polling, once the workers' last events are read; cancel stages that wait or have not started.

        Returns when none waits on Ray any more, so that Ray can be left.
        """
        self._stop.set()
        if self._polling is not None:
            self._polling.join(_LOOK_S + 2 * FLUSH_TIMEOUT_S)  # longer than it takes to give up
        with self._fewer_wait:
            self._fewer_wait.wait_for(lambda: not self._waiting)

    def raise_if_aborted(self) -> None:
        """Raise if the flow has ended, or the cluster is gone.

        Raises:
            TrainingError: the cluster has not answered for a while.
            CancelledError: the flow has ended.
        """
        if self._is_lost:
            address = os.environ.get("RAY_ADDRESS")
            lost = (
                f"the Ray cluster at {address} stopped answering: start it (`make up`)" if address else "Ray was ended"
            )
            raise TrainingError(f"{lost}; finished stages and checkpoints are kept; start the same run again to resume")
        if self._stop.is_set():
            raise CancelledError("another stage failed, or the flow was interrupted")

    def _poll(self) -> None:
        seen: dict[str, Progress] = {}
        is_over, heard_s, patience_s = False, time.monotonic(), _START_S
        while not is_over and not self._is_lost:
            is_over = self._stop.wait(_POLL_S)
            try:
                latest, events = self._drain()
            except (ray.exceptions.RayError, RuntimeError):  # an actor that died alone is back within seconds
                self._is_lost = time.monotonic() - heard_s > patience_s
                continue
            for event in events:
                replay(event)
                if event["event"] == "begins":
                    with self._lock:
                        self._on_begin.pop(event["fields"]["key"], lambda: None)()
            for title, progress in latest.items():
                if seen.get(title) != progress:
                    with log_context(**self._ids.get(title, {})):
                        self.listen(title, progress)
            seen = latest
            patience_s = _PATIENCE_S
            heard_s = time.monotonic()  # not before: a slow listener is not a silent cluster

    def _drain(self) -> tuple[dict[str, Progress], list[dict[str, Any]]]:
        """What the actor has; soon an error where the flow ends meanwhile: who asks when Ray is left ends the process.

        Raises:
            RayError: no answer within ``_PATIENCE_S``, or ``FLUSH_TIMEOUT_S`` once the flow has ended.
        """
        asked, deadline_s = self._actor.drain.remote(), time.monotonic() + _PATIENCE_S
        was_over = self._stop.is_set()
        while True:
            try:
                found: tuple[dict[str, Progress], list[dict[str, Any]]] = ray.get(
                    asked, timeout=FLUSH_TIMEOUT_S if was_over else _LOOK_S
                )
                return found
            except ray.exceptions.GetTimeoutError:
                if self._stop.is_set() or time.monotonic() > deadline_s:
                    raise


@ray.remote
def _run(call: StageCall, store_uri: str, resources: Resources, reporter: WorkerReporter) -> Finished:
    with reporter.relay_events():
        return run_stage(call, open_store(store_uri), resources, reporter)


def run_on_ray(call: StageCall, store_uri: str, resources: Resources, monitor: ProgressMonitor) -> Finished:
    """Run ``call`` on the cluster and wait for it.

    Raises:
        SslBackdoorError: what the stage raised, as itself.
        SpecError: no node has so many CPUs.
        TrainingError: the worker process died more often than ``max_retries``, the stage took longer than
            ``stage_timeout_s``, or the cluster is gone.
        CancelledError: the flow has ended meanwhile.
    """
    try:
        with monitor.waiting():
            connect(resources)
            check_room(resources)
            actor = monitor.actor()
            work = _ray_task(call, resources).remote(call, store_uri, resources, WorkerReporter(actor, call.title))
            while not ray.wait([work], timeout=_POLL_S)[0]:
                monitor.raise_if_aborted()
                _check_time(work, call, resources, actor)
            finished: Finished = ray.get(work)
            return finished
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from None
    except ray.exceptions.WorkerCrashedError as error:
        raise TrainingError(
            f"{call.title}: the worker process died {resources.max_retries + 1} times; "
            "its last checkpoint is kept; run the same command again to resume"
        ) from error


def check_room(resources: Resources) -> None:
    """Refuse what no node of the cluster can hold: Ray would let it wait for ever.

    Raises:
        SpecError: no node has as many CPUs as a stage has threads.
    """
    threads = resources.threads
    most = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    if threads > most:
        raise SpecError(
            f"a stage of {threads} threads needs so many CPUs on one node, the largest of the Ray cluster has {most}: "
            "give fewer threads, or a larger node"
        )


def _here() -> NodeAffinitySchedulingStrategy:
    """On the flow's own node, with which the flow itself would be lost."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _ray_task(call: StageCall, resources: Resources) -> Any:
    """The Ray task that does ``call``, and what it takes: Ray starts it once the cluster has that to spare."""
    if resources.workers > 1 and call.fit is not None:
        return _run_group.options(
            num_cpus=0, max_retries=resources.max_retries, scheduling_strategy=_here(), name=f"group of {call.title}"
        )
    return _run.options(
        num_cpus=resources.threads,
        num_gpus=gpus_each(resources),
        max_retries=resources.max_retries,
        name=call.title,
    )


def gpus_each(resources: Resources) -> float:
    """GPUs of a one-replica stage: ``gpu_fraction`` where the cluster has any, unless the CPU is asked for."""
    has_gpu = resources.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    return resources.gpu_fraction if has_gpu else 0.0


def devices_of(resources: Resources) -> int:
    """How many one-replica stages the cluster runs at once."""
    held = ray.cluster_resources()
    by_cpu = int(held.get("CPU", 0)) // resources.threads
    if not (each := gpus_each(resources)):
        return by_cpu
    return min(by_cpu, int(held["GPU"]) * int(1 / each + 1e-6))  # none lies on two


def _check_time(work: Any, call: StageCall, resources: Resources, actor: Any) -> None:
    """End ``work``, a group with all its replicas, when its time is over; waiting for a device does not count."""
    limit_s = resources.stage_timeout_s
    if not limit_s:
        return
    try:
        if ray.get(actor.elapsed_s.remote(call.title), timeout=_PATIENCE_S) <= limit_s:
            return
    except ray.exceptions.RayError:
        return  # the polling thread finds out whether the cluster is gone
    ray.cancel(work, force=True)
    raise TrainingError(
        f"{call.title}: ended after {limit_s:g} s, its limit (stage_timeout_s); checkpoints are kept; start the "
        "same run again to resume"
    )


@ray.remote
def _run_group(call: StageCall, store_uri: str, resources: Resources, reporter: WorkerReporter) -> Finished:
    """A worker group, owned by this Ray task: whatever ends the task ends the group."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    from tasks.ray_group import run_group

    try:
        run_group(call, store_uri, resources, reporter)
    except TrainingFailedError as error:
        raise cause_of(error) from error
    ref = open_store(store_uri).find(call.stage, call.key)
    if ref is None:
        raise TrainingError(
            f"{call.title}: the worker group ended without an artifact; Ray's logs say more, which services keep"
        )
    return Finished(ref, reused=False)


def cause_of(error: BaseException) -> BaseException:
    """The project's own error inside Ray's wrappings, or the wrapping itself."""
    inner: Any = error
    while isinstance(inner, BaseException):
        if isinstance(inner, SslBackdoorError) and not isinstance(inner, ray.exceptions.RayTaskError):
            return inner
        failures = getattr(inner, "worker_failures", None)
        inner = next(iter(failures.values())) if failures else getattr(inner, "cause", None) or inner.__cause__
    return error
