"""Where stages run: the only Ray code of the project.

A one-replica stage is a plain Ray task; Ray Train is used only when a training has several replicas. Both call the
same ``run_stage``, and both resume from the store's newest checkpoint when a worker process dies.
"""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import ray

from ssl_backdoor.errors import SpecError, SslBackdoorError, TrainingError
from ssl_backdoor.progress import OnProgress, Progress
from ssl_backdoor.specs import Resources
from ssl_backdoor.stages import Finished, StageCall, run_stage
from ssl_backdoor.store import open_store

Listener = Callable[[str, Progress], None]
_POLL_S = 1.0
_connecting = threading.Lock()


def connect(resources: Resources) -> None:
    """Join the cluster of ``RAY_ADDRESS``, or start a local one sized to the machine. Idempotent."""
    with _connecting:
        if ray.is_initialized():
            return
        logging.getLogger("ray").setLevel(logging.ERROR)
        address = os.environ.get("RAY_ADDRESS")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        if address:
            ray.init(address=address, **quiet)
            return
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # an in-process cluster on loopback, gone with this process
        cpus = max(os.cpu_count() or 1, resources.workers * resources.threads)
        ray.init(
            address="local",
            num_cpus=resources.parallel * resources.threads if resources.parallel else cpus,
            include_dashboard=False,
            object_store_memory=200 * 1024**2,
            _temp_dir=str(Path(tempfile.gettempdir()) / "ssl-backdoor-ray"),
            **quiet,
        )


def disconnect() -> None:
    """Leave the cluster; a local one ends with its workers."""
    if ray.is_initialized():
        ray.shutdown()


class _Board:
    """Latest progress of every running stage."""

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}

    def post(self, title: str, progress: Progress) -> None:
        self._latest[title] = progress

    def read(self) -> dict[str, Progress]:
        return dict(self._latest)


class Watcher:
    """One board and one polling thread for all stages of a flow; ``listen`` is called about once a second."""

    def __init__(self, listen: Listener) -> None:
        self.listen = listen
        self._lock = threading.Lock()
        self._board: Any = None
        self._stop = threading.Event()
        self._stated = self._ended = 0

    def stated(self) -> None:
        """One more stage is to be done."""
        with self._lock:
            self._stated += 1

    def ended(self) -> None:
        """One stage less is to be done; whoever listens hears how far the whole flow is."""
        with self._lock:
            self._ended += 1
            whole = Progress(self._ended, self._stated, "stages")
        self.listen("all stages", whole)

    def board(self) -> Any:
        """The actor that workers post to; made on first use."""
        with self._lock:
            if self._board is None:
                self._board = ray.remote(num_cpus=0)(_Board).remote()
                threading.Thread(target=self._poll, name="progress", daemon=True).start()
            return self._board

    def close(self) -> None:
        """Stop polling; stages that have not started are called off."""
        self._stop.set()

    def check(self) -> None:
        """Raise CancelledError once the flow has ended, so that no thread waits for a cluster that is gone."""
        if self._stop.is_set():
            raise CancelledError("another stage failed, or the flow was interrupted")

    def _poll(self) -> None:
        seen: dict[str, Progress] = {}
        while not self._stop.wait(_POLL_S):
            try:
                latest = ray.get(self._board.read.remote(), timeout=10)
            except (ray.exceptions.RayError, RuntimeError):
                return  # the cluster is going down; the stage itself reports why
            for title, progress in latest.items():
                if seen.get(title) != progress:
                    self.listen(title, progress)
            seen = latest


def _poster(board: Any, title: str) -> OnProgress:
    def post(progress: Progress) -> None:
        board.post.remote(title, progress)

    return post


@ray.remote
def _run(call: StageCall, store_uri: str, resources: Resources, board: Any) -> Finished:
    return run_stage(call, open_store(store_uri), resources, _poster(board, call.title))


def _run_replica(config: dict[str, Any]) -> None:
    """One replica of a Ray Train worker group; every replica calls this."""
    call: StageCall = config["call"]
    leader = ray.train.get_context().get_world_rank() == 0
    listen = _poster(config["board"], call.title) if leader else _ignore
    run_stage(call, open_store(config["store_uri"]), config["resources"], listen)


def _ignore(_: Progress) -> None:
    """Only replica 0 tells how far the group is."""


def run_on_ray(call: StageCall, store_uri: str, resources: Resources, watcher: Watcher) -> Finished:
    """Run ``call`` on the cluster and wait for it.

    Raises:
        SslBackdoorError: what the stage raised, as itself.
        TrainingError: the worker process died more often than ``max_retries``.
        CancelledError: the flow has ended meanwhile.
    """
    watcher.check()
    connect(resources)
    board = watcher.board()
    replicas = resources.workers if call.stage in ("train", "defend") else 1
    try:
        if replicas > 1:
            return _run_group(call, store_uri, resources, watcher)
        num_gpus = 1 if resources.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1 else 0
        work = _run.options(
            num_cpus=resources.threads, num_gpus=num_gpus, max_retries=resources.max_retries, name=call.title
        ).remote(call, store_uri, resources, board)
        while not ray.wait([work], timeout=_POLL_S)[0]:
            watcher.check()
        finished: Finished = ray.get(work)
        return finished
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from None
    except ray.exceptions.WorkerCrashedError as error:
        raise TrainingError(
            f"{call.title}: the worker process died {resources.max_retries + 1} times; "
            "its last checkpoint is kept, and the same command goes on from there."
        ) from error


def _run_group(call: StageCall, store_uri: str, resources: Resources, watcher: Watcher) -> Finished:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    cpus = int(ray.cluster_resources().get("CPU", 0))
    if resources.workers * resources.threads > cpus:
        raise SpecError(
            f"{resources.workers} workers of {resources.threads} threads need {resources.workers * resources.threads} "
            f"CPUs, the Ray cluster has {cpus}: give fewer workers or threads, or a larger cluster."
        )
    use_gpu = resources.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= resources.workers
    with tempfile.TemporaryDirectory(prefix="ssl-backdoor-train-") as folder:
        trainer = TorchTrainer(
            _run_replica,
            train_loop_config={"call": call, "store_uri": store_uri, "resources": resources, "board": watcher.board()},
            scaling_config=ScalingConfig(
                num_workers=resources.workers, use_gpu=use_gpu, resources_per_worker={"CPU": resources.threads}
            ),
            run_config=RunConfig(
                name=f"{call.stage}-{call.key[:12]}-{int(time.time())}",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=resources.max_retries),
            ),
        )
        pool = ThreadPoolExecutor(1)
        try:
            fitting = pool.submit(trainer.fit)
            while not wait([fitting], timeout=_POLL_S).done:
                watcher.check()
            fitting.result()
        except TrainingFailedError as error:
            raise _cause(error) from error
        finally:
            pool.shutdown(wait=False)
    ref = open_store(store_uri).find(call.stage, call.key)
    if ref is None:
        raise TrainingError(f"{call.title}: the worker group ended without an artifact; see the Ray logs.")
    return Finished(ref, reused=False)


def _cause(error: BaseException) -> BaseException:
    """The project's own error inside Ray's wrappings, or the wrapping itself."""
    inner: Any = error
    while isinstance(inner, BaseException):
        if isinstance(inner, SslBackdoorError) and not isinstance(inner, ray.exceptions.RayTaskError):
            return inner
        failures = getattr(inner, "worker_failures", None)
        inner = next(iter(failures.values())) if failures else getattr(inner, "cause", None) or inner.__cause__
    return error
