import math
from typing import Any, final

import pytest
import torch
from torch import Tensor

from ssl_backdoor.errors import TrainingError
from ssl_backdoor.methods.base import Batch, LossOutput, SingleProcess, SSLMethod
from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.train.fit import StepLog, fit
from tests.support.tiny_training import BACKBONE


@final
class Descent(SSLMethod):
    """Minimises the square of one number; the loss of step ``bad`` is not finite."""

    num_views = 1

    def __init__(self, bad: int = -1, value: float = math.nan):
        super().__init__()
        self.backbone = build_backbone(BACKBONE, 1, 0).requires_grad_(False)
        self.number = torch.nn.Parameter(torch.tensor(1.0))
        self.bad = bad
        self.value = value
        self.told: list[float] = []

    def loss(self, batch: Batch) -> LossOutput:
        loss = self.number**2
        return LossOutput(loss * self.value if batch.step == self.bad else loss, {"number": self.number.detach()})

    def after_step(self, progress: float) -> None:
        self.told.append(progress)


def run(method: Descent, num_steps: int = 4, first_step: int = 0, **changes: Any) -> list[StepLog]:
    logs: list[StepLog] = []
    arguments: dict[str, Any] = {
        "first_step": first_step,
        "num_steps": num_steps,
        "replicas": SingleProcess(),
        "autocast": torch.autocast("cpu", torch.bfloat16, enabled=False),
        "on_step": logs.append,
        "on_checkpoint": lambda step: None,
        "checkpoint_every": 100,
    }
    optimizer = torch.optim.SGD([method.number], lr=9.0)
    fit(
        method, lambda step: Batch((Tensor(),), step), optimizer, lambda step: 0.1 * (step + 1), **(arguments | changes)
    )
    return logs


def test_steps_follow_the_schedule_from_the_first_step() -> None:
    method = Descent()
    logs = run(method, num_steps=4, first_step=1)
    expected = 1.0
    for log, rate in zip(logs, (0.2, 0.3, 0.4), strict=True):
        assert log.loss == pytest.approx(expected**2)
        expected -= rate * 2 * expected
    assert method.number.item() == pytest.approx(expected)
    assert [log.step for log in logs] == [1, 2, 3]
    assert method.told == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_stops_before_the_update_and_names_the_step(value: float) -> None:
    before, method = Descent(), Descent(bad=2, value=value)
    run(before, num_steps=2)
    with pytest.raises(TrainingError, match=f"the loss became {value} at step 2 of 4"):
        run(method, num_steps=4)
    assert method.number.item() == before.number.item()
    assert len(method.told) == 2


def test_checkpoints_come_at_their_steps_but_not_after_the_last() -> None:
    steps: list[int] = []
    run(Descent(), num_steps=9, on_checkpoint=steps.append, checkpoint_every=3)
    assert steps == [3, 6]
