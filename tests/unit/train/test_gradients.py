import pytest
import torch

from ssl_backdoor.methods.base import Batch, SingleProcess, SSLMethod
from ssl_backdoor.train.gradients import NUM_EAGER, Gradients
from tests.support.tiny_training import OBJECTIVES, RATES, build_compress, objective, random_batch, train_spec

REPLAYABLE = ("byol", "compress_1", "compress_2", "moco_v2", "msf", "rotnet", "simclr", "simsiam")


def with_one_group(name: str) -> SSLMethod:
    """The small objective ``name`` with BatchNorm over the whole batch, as on one GPU."""
    if name.startswith("compress"):
        return build_compress(int(name[-1]), SingleProcess()).train()
    return (spec := train_spec(name, bn_groups=1)).method.build(spec, 0).train()


def no_autocast(device: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=False)


def losses(method: SSLMethod, device: str, num_steps: int, lr: float) -> list[float]:
    if hasattr(method, "teacher"):
        method.teacher[0].to(device)
    gradients = Gradients(method.to(device), no_autocast(device), SingleProcess())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr)
    found = []
    for step in range(num_steps):
        batch = random_batch(method, step)
        found.append(float(gradients(Batch(tuple(view.to(device) for view in batch.views), step)).loss))
        optimizer.step()
        method.after_step(step / num_steps)
    return found


def test_gradients_are_those_of_the_last_batch_alone() -> None:
    method, twin = objective("simclr"), objective("simclr")
    gradients = Gradients(method, no_autocast("cpu"), SingleProcess())
    gradients(random_batch(method, 1))
    output = gradients(random_batch(method, 2))
    twin.loss(random_batch(twin, 1))  # moves BatchNorm's running statistics as above
    loss = twin.loss(random_batch(twin, 2)).loss
    loss.backward()
    assert output.loss == loss.detach()
    assert not output.loss.requires_grad
    for mine, theirs in zip(method.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_step_supports_a_cuda_graph_if_the_host_draws_nothing_in_it(name: str) -> None:
    drawn = ("clip", "clip_micro", "jigsaw", "mae", "roclip", "safeclip")
    assert objective(name).supports_cuda_graph == (name not in (*drawn, "moco_v2", "msf"))  # two groups are shuffled
    if name not in drawn:
        assert with_one_group(name).supports_cuda_graph


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", REPLAYABLE)
def test_replayed_steps_train_as_the_others_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed, eager = with_one_group(name), with_one_group(name)
    size = NUM_EAGER + 6, RATES.get(name, 0.01)
    found = losses(replayed, "cuda", *size)
    monkeypatch.setattr(type(eager), "supports_cuda_graph", False)
    torch.testing.assert_close(found, losses(eager, "cuda", *size), rtol=1e-4, atol=1e-5)
    assert len(set(found)) == len(found)
