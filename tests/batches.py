"""Small traffic batches the tests share: seasonal traffic on a 4 x 4 grid with a dead and an absent cell."""

from __future__ import annotations

import math

import torch

from raytraffic.types import Space, TrafficBatch

DEAD, ABSENT = 3, 5


def seasonal_batch(windows: int = 4, steps: tuple[int, ...] = (15, 30, 60), t: int = 64, seed: int = 0, poi: int = 15) -> TrafficBatch:
    """`windows` windows of mixed granularity; everything known."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.tensor([steps[i % len(steps)] for i in range(windows)])
    slot = torch.arange(t).expand(windows, t) + torch.randint(0, 24, (windows, 1), generator=generator)
    per_day = 1440 // step[:, None]
    clock = torch.stack((slot % per_day, (slot // per_day) % 7), dim=-1)
    level = torch.exp(torch.randn(windows, 1, 1, 16, generator=generator) + 4)
    rhythm = 1.2 + torch.sin(2 * math.pi * (slot % per_day) / per_day)[:, None, :, None]
    traffic = level * rhythm * torch.exp(0.2 * torch.randn(windows, 1, t, 16, generator=generator))
    traffic[..., DEAD] = 0.0
    traffic[..., ABSENT] = torch.nan
    users = traffic[:, 0] / 10 * torch.exp(0.1 * torch.randn(windows, t, 16, generator=generator))
    return TrafficBatch(
        traffic=traffic,
        known=torch.isfinite(traffic),
        clock=clock,
        step_minutes=step,
        key=torch.arange(windows) * 7919 + 13,
        space=Space(grid=(4, 4), xy=torch.rand(windows, 16, 2, generator=generator) * 1000),
        context={
            "users": users,
            "poi": torch.poisson(torch.full((windows, poi, 16), 3.0), generator=generator),
            "profile": rhythm[:, 0, :, 0],
            "reference": traffic.nan_to_num().amax(dim=(2, 3)),
            "modes": 0.1 * torch.randn(windows, t, 8, generator=generator),
            "persistence": 0.01 * torch.rand(windows, 5, generator=generator),
        },
    )
