"""The one training loop, read from top to bottom: pre-training and distillation both use it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_backdoor.errors import TrainingError
from ssl_backdoor.methods.base import Batch, Replicas, SSLMethod
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
    Gradients and loss are averaged over ``replicas``. ``on_checkpoint`` hears, on every replica, the number of steps
    done, each ``checkpoint_every`` steps except after the last: then the result itself is about to be written.

    Raises:
        TrainingError: The loss is not finite. The message names the step; weights, slow copies and queues are as
            before it. On CUDA this look at the loss waits for the step's backward pass.
    """
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    method.train()
    for step in range(first_step, num_steps):
        with autocast:
            output = method.loss(batches(step))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(output.loss)
        loss = output.loss.detach()
        replicas.average([loss, *(parameter.grad for parameter in parameters if parameter.grad is not None)])

        loss_value = float(loss)
        if not math.isfinite(loss_value):
            raise TrainingError(
                f"the loss became {loss_value} at step {step} of {num_steps}, before its update; "
                "lower the learning rate or lengthen the warm-up"
            )

        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.step()
        method.after_step(step / num_steps)

        on_step(StepLog(step, loss_value, output.logs))
        if (step + 1) % checkpoint_every == 0 and step + 1 < num_steps:
            on_checkpoint(step + 1)
