"""What a conditioner may see of a batch."""

from __future__ import annotations

import pytest
import torch

from raytraffic.masks import GENERATION, LONG, RANDOM, SHORT, Task, mask
from tests.batches import seasonal_batch


@pytest.mark.parametrize("task", [SHORT, LONG, GENERATION, RANDOM], ids=lambda task: task.name)
def test_hidden_traffic_and_hidden_users_are_not_visible(task: Task) -> None:
    batch = mask(seasonal_batch(), task)
    seen = batch.visible()
    assert bool((~batch.known).any())
    assert not bool(seen.traffic[~batch.known].any())
    assert torch.equal(seen.traffic[batch.known], batch.traffic[batch.known])
    known = batch.known.any(dim=1)
    assert not bool(seen.context["users"][~known].any())
    assert torch.equal(seen.context["users"][known], batch.context["users"][known])
    for name in ("poi", "profile", "reference"):
        assert torch.equal(seen.context[name], batch.context[name])
