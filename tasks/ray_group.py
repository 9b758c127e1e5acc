"""A training of several replicas: a Ray Train worker group that forms a process group of its own.

Ray Train starts the workers, watches them, and starts them anew when one dies or a node is gone. How they find each
other is settled here and not by Ray's ``TorchTrainer``: that lets gloo use whatever address the host's name has, which
is loopback on many machines, opens its rendezvous on every interface, and trains with every worker there is.
"""

import datetime
import fcntl
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, left out of __all__

from ssl_backdoor.errors import SpecError
from ssl_backdoor.progress import silent
from ssl_backdoor.specs import Resources
from ssl_backdoor.stages import StageCall, run_stage
from ssl_backdoor.store import open_store
from tasks.progress_actor import WorkerReporter

_TIMEOUT = datetime.timedelta(minutes=10)
_SIOCGIFADDR = 0x8915
"""Linux: the IPv4 address of an interface."""


def run_group(call: StageCall, store_uri: str, resources: Resources, reporter: WorkerReporter) -> None:
    """Train on ``resources.workers`` replicas, or on as few as ``resources.min_workers`` while nodes are missing.

    Raises:
        SpecError: the cluster has fewer CPUs than that takes, or the workers do not divide ``bn_groups``.
        ray.train.v2.api.exceptions.TrainingFailedError: workers failed more often than ``max_retries``.
    """
    fewest = resources.min_workers or resources.workers
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if fewest * resources.threads > cpus:
        raise SpecError(
            f"{fewest} workers of {resources.threads} threads need {fewest * resources.threads} CPUs, the Ray cluster "
            f"has {cpus}: give fewer workers or threads, or a larger cluster"
        )
    replicas: Any = resources.workers if fewest == resources.workers else (fewest, resources.workers)
    use_gpu = resources.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= fewest
    with tempfile.TemporaryDirectory(prefix="ssl-backdoor-train-") as folder:
        trainer = DataParallelTrainer(
            _replica,
            train_loop_config={"call": call, "store_uri": store_uri, "resources": resources, "reporter": reporter},
            scaling_config=ScalingConfig(
                num_workers=replicas, use_gpu=use_gpu, resources_per_worker={"CPU": resources.threads}
            ),
            run_config=RunConfig(
                name=f"{call.stage}-{call.key[:12]}-{int(time.time())}",
                storage_path=folder,  # Ray's notes alone: checkpoints and results go to the store
                failure_config=FailureConfig(max_failures=resources.max_retries),
            ),
        )
        trainer.fit()


def replicas_that_train(world: int, bn_groups: int) -> int:
    """The most of ``world`` workers among which ``bn_groups`` split evenly, so that their number changes no result."""
    return max(count for count in range(1, world + 1) if bn_groups % count == 0)


def _replica(config: dict[str, Any]) -> None:
    """What every worker does; one too many for the BatchNorm groups ends at once."""
    call: StageCall = config["call"]
    resources: Resources = config["resources"]
    rank, world = get_context().get_world_rank(), get_context().get_world_size()
    if call.fit is None:
        raise SpecError(f"{call.title}: nothing is trained here that several workers could share; set workers to 1.")
    count = resources.workers if world == resources.workers else replicas_that_train(world, call.fit.bn_groups)
    with _together(rank, count) as taking_part:
        if taking_part:
            resources = resources.model_copy(update={"workers": count})
            reporter: WorkerReporter = config["reporter"]
            with nullcontext() if rank else reporter.relay_events():
                run_stage(call, open_store(config["store_uri"]), resources, silent if rank else reporter)


@contextmanager
def _together(rank: int, count: int) -> Iterator[bool]:
    """The first ``count`` workers as one process group, over the addresses by which Ray knows their nodes."""
    address = ray.util.get_node_ip_address()
    store, place = None, None
    if rank == 0:
        listener = socket.create_server((address, 0))
        port = listener.getsockname()[1]
        store = TCPStore(
            address, port, is_master=True, wait_for_workers=False, timeout=_TIMEOUT, master_listen_fd=listener.detach()
        )
        place = (address, port)
    host, port = broadcast_from_rank_zero(place)
    if rank >= count:
        yield False
        return
    os.environ["RANK"] = str(rank)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface(address))
    store = store or TCPStore(host, port, is_master=False, timeout=_TIMEOUT)
    backend = "nccl" if ray.get_gpu_ids() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_TIMEOUT)
    try:
        yield True
    finally:
        dist.destroy_process_group()


def _interface(address: str) -> str:
    """Name of the network interface that has the IPv4 ``address``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # an interface without an IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    raise SpecError(f"no network interface of this node has the address {address} by which Ray knows it.")
