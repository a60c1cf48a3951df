r"""LEC-Diff's causal conditioner: an RNN over a station's past and covariates, fused with the environment over the station graph.

    x_t = SiLU(W [lagged values (+) clock (+) prior] + W_s station + W_u e)      e: the site's environment vector
    h_t = RNN(h_{t-1}, x_t)
    f_t = Fusion(h_t + W_e e)                                                    (raytraffic.models.lec_diff.fusion; Fig. 2b)

The environment vector is computed once a site: taken from an embedding store, or made of POI counts by `embed`. What hangs on no draw
(clock, prior, station and environment) is computed once a forecast. Layers of the environment end in zero at construction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raytraffic.autoregressive import Carried
from raytraffic.models.lec_diff.fusion import Fusion, propagation
from raytraffic.models.lec_diff.recurrence import LAGS, Recurrence, lagged
from raytraffic.nn.embeddings import ClockEmbedding
from raytraffic.nn.transformer import ZeroLinear
from raytraffic.types import Condition, Scale, Space, TrafficBatch

if TYPE_CHECKING:
    from raytraffic.models.lec_diff.config import LecDiffConfig

__all__ = ["NUMBERS", "GraphCarried", "LecDiffConditioner"]

#: Numbers of a station and service, beside the granularity: spread, share of known entries, probability of being dead.
NUMBERS = 3


@dataclass(frozen=True, kw_only=True)
class GraphCarried(Carried):
    """The state of each station, and what stays: what is known of slots (r, t, s, d) and stations (r, s, d), and the graph (n, n)."""

    slots: Tensor
    station: Tensor
    node: Tensor
    step_minutes: Tensor
    walk: Tensor


class LecDiffConditioner(nn.Module):
    """Hears entries before a slot; sees of its contexts environment vectors or POI. Undeclared contexts are never read."""

    learning_rate_scale: float = 1.0

    def __init__(self, config: LecDiffConfig) -> None:
        super().__init__()
        self.contexts = config.seen
        #: Features of the site embedding `env` that `embed` makes and `forward` takes.
        self.env_features = config.site_features
        self.neighbourhood = config.neighbourhood
        hidden, services = config.hidden, config.services
        self.clock = ClockEmbedding(config.clock_features)
        self.slot_input = nn.Linear((2 * LAGS + 1) * services + config.clock_features, hidden)
        self.station_input = nn.Linear(1 + NUMBERS * services, hidden)
        if "poi" in self.contexts:
            self.poi_static = nn.Linear(len(config.poi_categories), self.env_features)
        if self.env_features:
            self.env_input = ZeroLinear(self.env_features, hidden)
            self.env_node = ZeroLinear(self.env_features, hidden)
        self.recurrence = Recurrence(hidden, config.layers, config.cell)
        self.fusion = Fusion(hidden, config.hops if config.graph else 0)
        self.hidden = hidden

    def embed(self, batch: TrafficBatch) -> TrafficBatch:
        """The batch with its POI counts turned into site embeddings `env` (b, 1, s, d), where it has no environment vectors."""
        if "poi" not in self.contexts or "env" in batch.context or "poi" not in batch.context:
            return batch
        counts = torch.nan_to_num(batch.context["poi"]).transpose(1, 2)
        env = torch.sigmoid(self.poi_static(torch.log1p(counts)))[:, None]
        return replace(batch, context={**batch.context, "env": env})

    def forward(self, batch: TrafficBatch, scale: Scale) -> Condition:
        """`field` (b, d, t, s): clock and prior of slots; `tokens` (b, s, 2 hidden): inputs and node of stations, without any past."""
        b, s = len(batch.key), batch.shape[3]
        tau = self.clock(batch.clock, batch.step_minutes).movedim(2, 1)[..., None].expand(-1, -1, -1, s)
        granularity = torch.log(batch.step_minutes.float() / 30)[:, None, None].expand(b, s, 1)
        known = batch.known.float().mean(dim=2, keepdim=True)
        numbers = torch.cat((torch.log(scale.spread / 0.3), known, scale.silent), dim=1)[:, :, 0].transpose(1, 2)
        station = self.station_input(torch.cat((granularity, numbers), dim=-1))
        node = torch.zeros_like(station)
        env = self._env(batch)
        if env is not None:
            station, node = station + self.env_input(env), self.env_node(env)
        return Condition(
            known=batch.known,
            space=batch.space,
            tokens=torch.cat((station, node), dim=-1),
            field=torch.cat((tau, scale.prior.to(tau.dtype)), dim=1),
        )

    def _env(self, batch: TrafficBatch) -> Tensor | None:
        """(b, s, d): the site embeddings, zero where a site has none; None where the model or the batch has none."""
        if not self.env_features or "env" not in batch.context:
            return None
        env = batch.context["env"]
        if env.shape[-1] != self.env_features:
            raise ValueError(f"context env: {env.shape[-1]} features, expected {self.env_features}")
        return torch.nan_to_num(env).mean(dim=1)  # a station does not move

    def begin(self, batch: TrafficBatch, condition: Condition) -> GraphCarried:
        """The state after the history where the condition remembers one, else zeros; the graph is built here, once a walk."""
        assert condition.tokens is not None and condition.field is not None
        rows, stations = condition.tokens.shape[:2]
        station, node, state = condition.tokens.tensor_split((self.hidden, 2 * self.hidden), dim=-1)
        if not state.shape[-1]:
            state = station.new_zeros(rows, stations, self.recurrence.state_features)
        # Without a graph nobody is heard, and none is built.
        space = condition.space if self.fusion.convolutions else Space()
        return GraphCarried(
            state=state,
            slots=condition.field.permute(0, 2, 3, 1),
            station=station,
            node=node,
            step_minutes=batch.step_minutes,
            walk=propagation(space, rows, stations, self.neighbourhood).to(station.device),
        )

    def remember(self, carried: GraphCarried, values: Tensor, present: Tensor, until: Tensor, condition: Condition) -> Condition:
        """The condition whose `tokens` end in the state after the first `until` (r,) slots."""
        state = carried.state
        for slot in range(int(until.max())):
            _, after = self._recur(carried, state, self._inputs(carried, values, present, slot, 1)[:, 0])
            state = torch.where((slot < until)[:, None, None], after, state)
        assert condition.tokens is not None
        return replace(condition, tokens=torch.cat((condition.tokens[..., : 2 * self.hidden], state), dim=-1))

    def step(self, carried: GraphCarried, values: Tensor, present: Tensor, slot: int) -> tuple[Condition, Tensor]:
        """What is told at a slot, `field` (r, hidden, 1, s), and the state (r, s, d) there."""
        h, state = self._recur(carried, carried.state, self._inputs(carried, values, present, slot, 1)[:, 0])
        fused = self.fusion((h + carried.node).flatten(0, 1), carried.walk).unflatten(0, h.shape[:2])
        return self._told(fused, present[:, :, slot : slot + 1]), state

    def teach(self, carried: GraphCarried, values: Tensor, present: Tensor) -> Condition:
        """What is told at every slot when all before it were as `values` say: rows (r * t)."""
        inputs = self._inputs(carried, values, present, 0, values.shape[2])
        state, course = carried.state, []
        for slot in range(values.shape[2]):
            h, state = self._recur(carried, state, inputs[:, slot])
            course.append(h + carried.node)
        nodes = torch.stack(course, dim=2)  # (r, s, t, hidden)
        fused = self.fusion(nodes.flatten(0, 1), carried.walk).unflatten(0, nodes.shape[:2])
        return self._told(fused.transpose(1, 2).flatten(0, 1), present.movedim(2, 1).flatten(0, 1)[:, :, None])

    def _inputs(self, carried: GraphCarried, values: Tensor, present: Tensor, first: int, count: int) -> Tensor:
        """x (r, k, s, hidden) of k slots from the first."""
        slots = torch.arange(first, first + count, device=values.device)
        past = lagged(values, present, carried.step_minutes, slots)
        told = torch.cat((past, carried.slots[:, first : first + count]), dim=-1)
        return nn.functional.silu(self.slot_input(told) + carried.station[:, None])

    def _recur(self, carried: GraphCarried, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output and state (r, s, ...) of a slot."""
        h, after = self.recurrence(x.flatten(0, 1), state.flatten(0, 1))
        return h.unflatten(0, state.shape[:2]), after.unflatten(0, state.shape[:2])

    def _told(self, fused: Tensor, known: Tensor) -> Condition:
        """The condition of rows from their fused features (r, s, hidden)."""
        return Condition(known=known, space=Space(), field=fused.transpose(1, 2)[:, :, None])
