"""The one training loop, read from top to bottom: pre-training and distillation both use it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_backdoor.errors import TrainingError
from ssl_backdoor.methods.base import Batch, Replicas, SSLMethod
from ssl_backdoor.train.gradients import Gradients
from ssl_backdoor.train.optim import Schedule


class StepLog(NamedTuple):
    """One finished step."""

    step: int
    """Index of the step from 0."""
    loss: float
    """Mean over the global batch, before the update."""
    logs: dict[str, Tensor]
    """The method's other scalars, of this replica, on its device."""


def fit(
    method: SSLMethod,
    batches: Callable[[int], Batch],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    *,
    first_step: int,
    num_steps: int,
    replicas: Replicas,
    autocast: torch.autocast,
    on_step: Callable[[StepLog], None],
    on_checkpoint: Callable[[int], None],
    checkpoint_every: int,
) -> None:
    """Train ``method`` in place from ``first_step`` (the steps done already) to ``num_steps``.

    All randomness is a pure function of seed and step (``batches``, and the method's own streams), so a training
    stopped at a checkpoint and one that was not go through the same states: bitwise on the CPU with one thread count.
    Gradients and loss are averaged over ``replicas``. ``on_checkpoint`` is called on every replica with the number of
    steps done, each ``checkpoint_every`` steps except after the last: then the result itself is about to be written.

    Losses are read asynchronously; the loop does not synchronise with the GPU: the next batch is made while it is busy
    with this one, and a loss is read once the next step is launched, or a checkpoint due.

    Raises:
        TrainingError: The loss is not finite. The message names the step; weights, EMA copies and queues are as
            before it, on CUDA as after it.
    """
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    gradients = Gradients(method, autocast, replicas)
    ready: Batch | None = None
    pending: list[_Scalars] = []
    method.train()
    for step in range(first_step, num_steps):
        is_last, is_checkpoint = step + 1 == num_steps, (step + 1) % checkpoint_every == 0
        loss, logs = gradients(ready or batches(step))
        ready = None if is_last else batches(step + 1)
        replicas.all_reduce_mean_([loss, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
        pending.append(_Scalars(step, loss, logs))
        finished = [pending.pop(0).wait(num_steps) for _ in range(len(pending) - loss.is_cuda)]
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.step()
        method.after_step(step / num_steps)
        while pending and (is_last or is_checkpoint):
            finished.append(pending.pop().wait(num_steps))
        for log in finished:
            on_step(log)
        if is_checkpoint and not is_last:
            on_checkpoint(step + 1)


class _Scalars:
    """The loss and logs of a step, being copied to the host asynchronously."""

    def __init__(self, step: int, loss: Tensor, logs: dict[str, Tensor]) -> None:
        self._step, self._logs = step, logs
        self._loss = loss.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if loss.is_cuda else None
        if self._copied:
            self._copied.record()

    def wait(self, num_steps: int) -> StepLog:
        """Wait for the copy and check the loss.

        Raises:
            TrainingError: The loss is not finite.
        """
        if self._copied:
            self._copied.synchronize()
        loss = float(self._loss)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at step {self._step} of {num_steps}, before its update; "
                "lower the learning rate or lengthen the warm-up"
            )
        return StepLog(self._step, loss, self._logs)
