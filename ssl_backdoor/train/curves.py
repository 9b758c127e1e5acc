"""The record of a training's scalars, thinned to a table that any page can draw."""

import math

import pyarrow as pa
import torch
from torch import Tensor

from ssl_backdoor.errors import CheckpointError
from ssl_backdoor.tables import CURVES
from ssl_backdoor.train.fit import StepLog

MAX_ROWS = 2_000


class Curves:
    """The loss and logs of every n-th step and of the last one; n keeps the table within ``MAX_ROWS``."""

    def __init__(self, num_steps: int, steps_per_epoch: int):
        self.num_steps = num_steps
        self.steps_per_epoch = steps_per_epoch
        self.steps: list[int] = []
        self.values: dict[str, list[float]] = {}

    def record(self, log: StepLog) -> None:
        """Keep ``log`` if its step is one of those kept."""
        num_kept = MAX_ROWS // (1 + len(log.logs)) - 1
        if log.step % math.ceil(self.num_steps / num_kept) == 0 or log.step == self.num_steps - 1:
            self.steps.append(log.step)
            self.values.setdefault("loss", []).append(log.loss)
            for name, value in log.logs.items():
                self.values.setdefault(name, []).append(float(value))

    def table(self) -> pa.Table:
        """Schema CURVES, the loss first, then by name and step; ``epoch`` is the step's start in epochs."""
        steps = self.steps * len(self.values)
        series = sorted(self.values.items(), key=lambda item: (item[0] != "loss", item[0]))
        columns = {
            "step": steps,
            "epoch": [step / self.steps_per_epoch for step in steps],
            "name": [name for name, values in series for _ in values],
            "value": [value for _, values in series for value in values],
        }
        return pa.table(columns, schema=CURVES)

    def tensors(self) -> dict[str, Tensor]:
        """The record for a checkpoint."""
        values = {f"curve.{name}": torch.tensor(kept, dtype=torch.float64) for name, kept in self.values.items()}
        return {"steps": torch.tensor(self.steps, dtype=torch.int64), **values}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up the record of ``tensors``.

        Raises:
            CheckpointError: they are no record.
        """
        lengths = {tuple(kept.shape) for kept in tensors.values()}
        if "steps" not in tensors or len(lengths) != 1 or len(*lengths) != 1:
            raise CheckpointError("the curves in the training checkpoint are no curves; remove it and train anew")
        self.steps = [int(step) for step in tensors["steps"].tolist()]
        self.values = {name.removeprefix("curve."): kept.tolist() for name, kept in tensors.items() if name != "steps"}
