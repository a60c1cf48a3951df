"""How a store is cut: the tile, the base token, and the overlapping runs of steps that make its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SCHEMA_VERSION", "Layout"]

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A series of `steps` is cut into runs; run r holds the steps [r * core, r * core + run_steps), core = run_steps - overlap_steps.

    Every window of up to `overlap_steps` steps that starts in the core of a run lies wholly inside that run, so a row can be
    read alone. `token` = (t0, h0, v0) and `tile` = (h, w) in entries; a shard holds about `shard_bytes` before compression.
    `seed` seeds the splits. With `group_stations` a tile holds up to h * w neighbouring stations, else a station is a tile of its own.
    Raises ValueError when tile or run are no whole number of tokens, or the overlap is no part of a run.
    """

    token: tuple[int, int, int] = (4, 4, 4)
    tile: tuple[int, int] = (4, 4)
    run_steps: int = 512
    overlap_steps: int = 64
    shard_bytes: int = 64 * 2**20
    row_group_rows: int = 8
    seed: int = 0
    group_stations: bool = False

    def __post_init__(self) -> None:
        numbers = (*self.token, *self.tile, self.run_steps, self.shard_bytes, self.row_group_rows)
        if len(self.token) != 3 or len(self.tile) != 2 or min(numbers) < 1:
            raise ValueError(f"layout: {self}, expected positive sizes, a token of three and a tile of two")
        for axis, size, unit in zip(("run_steps", "tile height", "tile width"), (self.run_steps, *self.tile), self.token, strict=True):
            if size % unit:
                raise ValueError(f"layout {axis}: {size}, expected a multiple of the token's {unit}")
        if not 0 < self.overlap_steps < self.run_steps:
            raise ValueError(f"layout overlap_steps: {self.overlap_steps}, expected 1..{self.run_steps - 1}")

    @classmethod
    def for_windows(
        cls, window: int, *, token: tuple[int, int, int], tile: tuple[int, int], seed: int, group_stations: bool = False
    ) -> Layout:
        """The layout of a store whose longest window has so many steps; a run is at least four windows, so that little is stored twice."""
        steps = max(cls.run_steps, 4 * window)
        run_steps = -(-steps // token[0]) * token[0]
        return cls(token=token, tile=tile, run_steps=run_steps, overlap_steps=window, seed=seed, group_stations=group_stations)

    @property
    def core(self) -> int:
        """Window starts that belong to one run."""
        return self.run_steps - self.overlap_steps

    @property
    def cells(self) -> int:
        """Cells of a tile."""
        return self.tile[0] * self.tile[1]

    def runs(self, steps: int) -> int:
        """Runs of a series of so many steps."""
        return -(-steps // self.core)

    def token_shape(self, services: int) -> tuple[int, ...]:
        """(T', H', V', c, t0, h0, v0) of one run."""
        counts = (self.run_steps // self.token[0], self.tile[0] // self.token[1], self.tile[1] // self.token[2])
        return (*counts, services, *self.token)

    def tokens(self, steps: int) -> int:
        """Base tokens of a tile's window of so many steps, those of all services being one."""
        counts = self.token_shape(1)
        return -(-steps // self.token[0]) * counts[1] * counts[2]

    def to_json(self) -> dict[str, Any]:
        """The manifest's fields."""
        return {
            "base_token": list(self.token),
            "tile": list(self.tile),
            "run_steps": self.run_steps,
            "overlap_steps": self.overlap_steps,
            "shard_bytes": self.shard_bytes,
            "row_group_rows": self.row_group_rows,
            "seed": self.seed,
            # Left out where it is not so: a store that was prepared before there was a choice is found finished.
            **({"group_stations": True} if self.group_stations else {}),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Layout:
        """The layout of a manifest."""
        t0, h0, v0 = fields["base_token"]
        height, width = fields["tile"]
        names = ("run_steps", "overlap_steps", "shard_bytes", "row_group_rows", "seed")
        numbers = {name: int(fields[name]) for name in names}
        return cls(token=(t0, h0, v0), tile=(height, width), group_stations=bool(fields.get("group_stations", False)), **numbers)
