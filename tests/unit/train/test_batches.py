import torch

from ssl_backdoor.methods.base import SingleProcess
from ssl_backdoor.specs import ViewsSpec
from ssl_backdoor.train import batches
from ssl_backdoor.train.batches import make_batches
from tests.support.tiny_training import BATCH, NUM_IMAGES, STEPS_PER_EPOCH, tiny_images

STILL = ViewsSpec(size_px=12, crop_scale=(1.0, 1.0), flip_p=0, jitter_p=0, grey_p=0, blur_p=0)
MOVED = ViewsSpec(size_px=12)
CPU = torch.device("cpu")


class Second(SingleProcess):  # the test plays one of two replicas
    count = 2
    index = 1


def identity_images() -> torch.Tensor:
    """Image i is everywhere i."""
    return torch.arange(NUM_IMAGES, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 12, 12).contiguous()


def seen(view: torch.Tensor) -> list[int]:
    return (view[:, 0, 5, 5] * 0.229 + 0.485).mul(255).round().int().tolist()


def test_an_epoch_sees_each_image_at_most_once_and_epochs_differ() -> None:
    batch = make_batches(identity_images(), None, BATCH, [STILL], 0, SingleProcess(), CPU)
    epochs = []
    for epoch in range(2):
        steps = range(epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH)
        images = [image for step in steps for image in seen(batch(step).views[0])]
        assert len(images) == len(set(images)) == STEPS_PER_EPOCH * BATCH
        epochs.append(images)
    assert epochs[0] != epochs[1]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    one = make_batches(tiny_images(), None, BATCH, [MOVED] * 2, 0, SingleProcess(), CPU)
    two = make_batches(tiny_images(), None, BATCH, [MOVED] * 2, 0, SingleProcess(), CPU)
    one(3)
    one(17)
    assert all(torch.equal(a, b) for a, b in zip(one(9).views, two(9).views, strict=True))
    assert one(9).step == 9
    other_seed = make_batches(tiny_images(), None, BATCH, [MOVED] * 2, 1, SingleProcess(), CPU)
    assert not torch.equal(one(9).views[0], other_seed(9).views[0])


def test_views_of_one_batch_differ_but_show_the_same_images() -> None:
    first, second = make_batches(tiny_images(), None, BATCH, [MOVED] * 2, 0, SingleProcess(), CPU)(0).views
    assert first.shape == second.shape == (BATCH, 3, 12, 12)
    assert not torch.equal(first, second)
    still = make_batches(identity_images(), None, BATCH, [STILL] * 2, 0, SingleProcess(), CPU)(0).views
    assert seen(still[0]) == seen(still[1])


def test_a_replica_sees_its_share_of_the_global_batch() -> None:
    whole = make_batches(tiny_images(), None, BATCH, [MOVED] * 2, 0, SingleProcess(), CPU)(6)
    half = make_batches(tiny_images(), None, BATCH, [MOVED] * 2, 0, Second(), CPU)(6)
    for all_views, own in zip(whole.views, half.views, strict=True):
        torch.testing.assert_close(all_views[BATCH // 2 :], own)


def test_views_made_for_several_steps_at_once_are_those_of_each_alone(monkeypatch) -> None:
    jittered = ViewsSpec(size_px=12, blur_p=0.5)
    at_once = make_batches(tiny_images(), None, BATCH, [jittered, MOVED], 0, SingleProcess(), CPU)
    together = [at_once(step) for step in range(2 * STEPS_PER_EPOCH)]
    monkeypatch.setattr(batches, "AT_ONCE_PX", {"cpu": 1})
    alone = make_batches(tiny_images(), None, BATCH, [jittered, MOVED], 0, SingleProcess(), CPU)
    for step, batch in enumerate(together):
        assert batch.step == step
        assert all(torch.equal(a, b) for a, b in zip(alone(step).views, batch.views, strict=True))
