import copy

import torch
import torch.nn.functional as F

from ssl_backdoor.methods.build import build_backbone
from ssl_backdoor.methods.losses import info_nce
from ssl_backdoor.methods.moco_v2 import MoCoV2
from ssl_backdoor.seeds import torch_generator
from ssl_backdoor.specs import MoCoV2Spec
from tests.support.tiny_training import BACKBONE, random_batch

SPEC = MoCoV2Spec(projector_hidden_dim=16, embedding_dim=8, queue_size=24, ema_decay=0.9)


def method(bn_groups: int = 1, **changes: object) -> MoCoV2:
    return MoCoV2(SPEC.model_copy(update=changes), build_backbone(BACKBONE, bn_groups, 0), 0).train()


def test_same_sequence_as_upstream() -> None:
    """Upstream moves the key encoder before its forward pass and enqueues at once; ours does both after the update."""
    ours = method()
    query = torch.nn.Sequential(copy.deepcopy(ours.backbone), copy.deepcopy(ours.projector))
    key = copy.deepcopy(query)
    queue, pointer = ours.queue.rows.clone(), 0
    ours_sgd = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=0.1)
    theirs_sgd = torch.optim.SGD(query.parameters(), lr=0.1)
    for step in range(5):
        batch = random_batch(ours, step)
        ours_sgd.zero_grad()
        loss = ours.loss(batch).loss
        loss.backward()
        ours_sgd.step()
        ours.after_step(step / 5)

        with torch.no_grad():
            for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
                slow.copy_(slow * 0.9 + fast * 0.1)
            keys = F.normalize(key(batch.views[1]), dim=1)
        theirs_sgd.zero_grad()
        expected = info_nce(F.normalize(query(batch.views[0]), dim=1), keys, queue.clone(), 0.2)
        expected.backward()
        theirs_sgd.step()
        queue[pointer : pointer + 8] = keys
        pointer = (pointer + 8) % 24

        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.queue.rows, queue, rtol=1e-3, atol=1e-4)


def test_queue_starts_with_unit_rows_from_its_stream() -> None:
    rows = method().queue.rows
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(24))
    assert torch.equal(rows, method().queue.rows)
    assert abs(rows.mean().item()) < 0.1


def test_keys_are_computed_in_shuffled_groups_and_come_back_in_order() -> None:
    ours = method(bn_groups=2)
    encoder = copy.deepcopy(ours.key_encoder)
    batch = random_batch(ours, 3)
    ours.loss(batch)
    order = torch.randperm(8, generator=torch_generator(0, "shuffle_bn", 3))
    expected = torch.empty(8, 8)
    expected[order] = F.normalize(encoder(batch.views[1][order]), dim=1)
    assert ours.new_keys is not None
    torch.testing.assert_close(ours.new_keys, expected)

    unshuffled = method(bn_groups=2, shuffle_bn=False)
    unshuffled.loss(batch)
    assert unshuffled.new_keys is not None
    assert not torch.allclose(unshuffled.new_keys, expected, atol=1e-3)  # other groups, other statistics


def test_shuffles_differ_between_steps() -> None:
    ours = method(bn_groups=2)
    keys = []
    for step in (0, 1):
        ours.loss(random_batch(ours, 0)._replace(step=step))
        assert ours.new_keys is not None
        keys.append(ours.new_keys)
    assert not torch.allclose(keys[0], keys[1], atol=1e-4)
