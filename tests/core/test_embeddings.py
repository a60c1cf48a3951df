"""The clock's embedding: hours mean the same at every step, and neither hours nor days are lost."""

from __future__ import annotations

import torch
from torch import Tensor

from raytraffic.nn.embeddings import ClockEmbedding


def embedded(slots: list[int], days: list[int], step: int) -> Tensor:
    """(n, 6) of some slots of the day and weekdays."""
    torch.manual_seed(0)
    clock = torch.tensor([slots, days]).T[None]
    with torch.no_grad():
        return ClockEmbedding(6)(clock, torch.tensor([step]))[0]


def test_an_hour_is_the_same_at_every_step() -> None:
    hours, days = [0, 3, 10, 23], [6, 0, 3, 1]
    hourly = embedded(hours, days, 60)
    for step in (15, 30):
        torch.testing.assert_close(embedded([hour * 60 // step for hour in hours], days, step), hourly, rtol=1e-4, atol=1e-5)


def test_every_hour_and_every_day_is_told_apart() -> None:
    hours = embedded(list(range(24)), [2] * 24, 60)
    days = embedded([10] * 7, list(range(7)), 60)
    for found in (hours, days):
        distance = torch.cdist(found, found) + torch.eye(len(found))
        assert float(distance.min()) > 1e-3
    # Hours go round: 23 h is next to 0 h, noon is not.
    assert float((hours[23] - hours[0]).norm()) < float((hours[12] - hours[0]).norm())
