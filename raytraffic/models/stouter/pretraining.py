"""Pre-training of both graphs (STOUTER 2), whose embeddings are then fixed parts of the model."""

from __future__ import annotations

from collections.abc import Sequence

from raytraffic.forecaster import Forecaster
from raytraffic.models.stouter.conditioner import StouterConditioner
from raytraffic.models.stouter.station_graph import station_graphs
from raytraffic.models.stouter.temporal_graph import embed_week, week_statistics
from raytraffic.nn.graph_autoencoder import Pretraining
from raytraffic.types import TrafficBatch

__all__ = ["pretrain_graphs"]


def pretrain_graphs(model: Forecaster, batches: Sequence[TrafficBatch], settings: Pretraining | None = None) -> dict[str, float]:
    """Gives a model its F_t, and the encoder of its F_s, of training windows whose measured traffic, POI and places are looked at.

    Returns the last losses, `temporal_loss` and `station_loss`, of the graphs that the model has. It comes before the model is trained: one
    that has learned with its embeddings would be told others. Raises ValueError for windows without traffic or, where the model has F_s,
    without POI.
    """
    settings = settings or Pretraining()
    conditioner = model.conditioner
    assert isinstance(conditioner, StouterConditioner), "a STOUTER"
    losses = {}
    if conditioner.week is not None:
        nodes, embedding = conditioner.week.shape
        week, course = embed_week(week_statistics(batches, nodes // 7), nodes // 7, embedding, settings)
        conditioner.week.copy_(week)
        losses["temporal_loss"] = course[-1]
    if conditioner.env_features:
        losses["station_loss"] = conditioner.stations.pretrain(station_graphs(batches), settings)[-1]
    return losses
