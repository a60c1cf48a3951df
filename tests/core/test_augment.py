"""Augmentation: every symmetry occurs, traffic and its contexts move together, and nothing else changes."""

from __future__ import annotations

import torch

from raytraffic.augment import drop_contexts, jitter_levels, turn_tiles
from tests.batches import seasonal_batch


def test_cells_move_together_and_by_every_symmetry() -> None:
    batch = seasonal_batch(200)
    turned = turn_tiles(batch, torch.arange(200))
    label = torch.arange(16.0)
    seen = set()
    for i in range(200):
        # Which cell went where is read off the coordinates, then demanded of everything else.
        order = torch.cdist(turned.space.xy[i], batch.space.xy[i]).argmin(dim=1)
        seen.add(tuple(order.tolist()))
        assert torch.equal(turned.traffic[i].nan_to_num(), batch.traffic[i][..., order].nan_to_num())
        assert torch.equal(turned.known[i], batch.known[i][..., order])
        assert torch.equal(turned.context["users"][i].nan_to_num(), batch.context["users"][i][..., order].nan_to_num())
        assert torch.equal(turned.context["poi"][i], batch.context["poi"][i][..., order])
        # Neighbours stay neighbours.
        grid = label[order].reshape(4, 4)
        step = (grid[:, 1:] - grid[:, :-1]).abs()
        assert set(step.flatten().tolist()) in ({1.0}, {4.0})
    assert len(seen) == 8
    assert torch.equal(turned.context["profile"], batch.context["profile"])


def test_contexts_are_dropped_by_share_and_independently() -> None:
    batch = seasonal_batch(400)
    dropped = drop_contexts(batch, torch.arange(400), 0.5)
    no_users = dropped.context["users"].isnan().all(dim=2).all(dim=1)
    no_poi = (dropped.context["poi"] == 0).all(dim=2).all(dim=1)
    assert 0.4 < float(no_users.float().mean()) < 0.6
    assert 0.4 < float(no_poi.float().mean()) < 0.6
    assert 0.15 < float((no_users & no_poi).float().mean()) < 0.35
    assert torch.equal(drop_contexts(batch, torch.arange(400), 0.0).context["poi"], batch.context["poi"])


def test_levels_are_jittered_cell_by_cell_and_nothing_else() -> None:
    batch = seasonal_batch(400)
    jittered = jitter_levels(batch, torch.arange(400), 0.5)
    ratio = (jittered.traffic / batch.traffic)[:, 0, :, :3]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    log = ratio[:, 0].log()
    touched = (log.abs() > 1e-6).any(dim=1)
    assert 0.6 < float(touched.float().mean()) < 0.8
    assert 0.45 < float(log[touched].std()) < 0.55
    assert abs(float(torch.corrcoef(log[touched].T)[0, 1])) < 0.2
    assert torch.equal(jittered.context["users"].nan_to_num(), batch.context["users"].nan_to_num())
