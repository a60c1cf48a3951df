"""STOUTER's Table 1 from the public download: Milan and Trentino, traffic type by traffic type, with the paper's numbers beside.

python benchmarks/stouter_table.py --milan DIR --trentino DIR --milan-cells milano-grid.geojson --trentino-cells trentino-grid.geojson
    --stations stations.csv --poi poi.csv --out FOLDER [--minutes 30] [--model small] [--types internet call sms] [--json FILE] [--quick]

DIR       Telecom Italia's records of an area (doi 10.7910/DVN/EGZHFV, 10.7910/DVN/QLCABU): a file a day, as it was published
cells     the area's squares (doi 10.7910/DVN/QJWLFU, 10.7910/DVN/FZRVSX), GeoJSON
stations  base stations of both areas (OpenCellID and the like), CSV or Parquet: unique_id, lat, lon; a square belongs to the nearest
poi       points of both areas (category, lat, lon), counted within 500 m of a station, or counts (unique_id and a column a category)

Hours from `--until` on, the two weeks from Christmas, are like no others and left out. The last week that was measured throughout is
generated, the whole weeks before it are learned from. The graphs are those of the whole city; the network learns and generates stations
in groups, which come out the same in any group (docs/decisions/0024). Every training gets `--minutes` of one thread's CPU time.

The paper states neither unit, nor bins, nor split. Here, by raytraffic.metrics.generation:
    MAE, RMSE    of single draws, over all stations and hours, in units of the largest hour of a station (before `--until`)
    JSD          x 1e-4: of courses divided by their sums, in nats, mean over pairs and slots; it has no bins
    value_jsd    x 1e-4, in the files alone: of histograms of all values in those units, 100 equal bins on [0, 1], base 2
Stations without activity of a type are left out of it, and of the JSD those without any in the generated week.

A row that is finished is a file FOLDER/AREA_TYPE_MODEL.json and is not trained again, and an area is read once, into FOLDER/AREA.npz.
Several processes may share FOLDER, each with `--types` of its own.
"""

from __future__ import annotations

import io
import json as json_module
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro
from generation_city import GROUP, WEEK
from measure import write_figures
from numpy.typing import NDArray
from stouter import Settings, hourly_window, train_network, weeks_of, with_graphs, with_reference
from torch import Tensor

from raytraffic.baselines.generators import Fitting, Generator, fit_diffwave, fit_tcn_gan, fit_vae
from raytraffic.files import Location
from raytraffic.metrics import generation as measures
from raytraffic.models.stouter import StouterConditioner, preset
from raytraffic.sources.faulty import Refused
from raytraffic.sources.gridding import LocalPlane, count_within
from raytraffic.sources.sheet import Columns, Sheet
from raytraffic.sources.telecom_italia import AGGREGATES, SERVICES, TelecomItaliaRecords
from raytraffic.sources.telecom_squares import AreaName
from raytraffic.types import TrafficBatch

Type = Literal["internet", "call", "sms", "call_in", "call_out", "sms_in", "sms_out"]
_TYPES: tuple[Type, ...] = ("internet", "call", "sms", "call_in", "call_out", "sms_in", "sms_out")
_MEASURES = ("mae", "rmse", "jsd")
_RADIUS_METRES = 500.0
#: Groups that are generated together.
_TOGETHER = 8

#: The paper's Table 1: MAE, RMSE and JSD of Internet, then of Call, then of SMS.
PAPER: Mapping[AreaName, Mapping[str, tuple[float, ...]]] = {
    "milan": {
        "TCN-GAN": (0.4183, 0.4693, 2.6895, 0.1357, 0.1598, 1.0161, 0.2714, 0.4335, 9.2472),
        "VAE": (0.1057, 0.1444, 0.8017, 0.0818, 0.1071, 0.4765, 0.0612, 0.0735, 0.2652),
        "DiffWave": (0.1329, 0.1707, 0.9199, 0.0860, 0.1086, 0.5573, 0.0721, 0.0837, 0.2213),
        "STOUTER": (0.0781, 0.1088, 0.4843, 0.0697, 0.0925, 0.3963, 0.0583, 0.0715, 0.1997),
    },
    "trentino": {
        "TCN-GAN": (0.4786, 0.5312, 2.9059, 0.1267, 0.1488, 0.8921, 0.0977, 0.1103, 0.3402),
        "VAE": (0.1044, 0.1440, 0.7938, 0.0810, 0.1018, 0.3520, 0.0721, 0.0896, 0.3369),
        "DiffWave": (0.0986, 0.1348, 0.8333, 0.0809, 0.1005, 0.5050, 0.1540, 0.1668, 0.4479),
        "STOUTER": (0.0827, 0.1139, 0.5196, 0.0719, 0.0915, 0.3076, 0.0613, 0.0808, 0.3380),
    },
}


@dataclass(frozen=True, eq=False)
class AreaHours:
    """An area by the hour: traffic (5 SERVICES, t, s) from `start` on, and its stations' places (s, 2) and POI counts (k, s)."""

    start: datetime
    traffic: NDArray[np.float32]
    xy: NDArray[np.float64]
    poi: NDArray[np.float32]
    categories: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Writes everything into one npz file."""
        start, categories = np.array(self.start.isoformat()), np.array(self.categories)
        buffer = io.BytesIO()
        np.savez(buffer, start=start, traffic=self.traffic, xy=self.xy, poi=self.poi, categories=categories)
        Location.of(path).write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> AreaHours:
        """What `save` wrote."""
        with np.load(path) as file:
            start, categories = datetime.fromisoformat(str(file["start"])), tuple(str(name) for name in file["categories"])
            return cls(start, file["traffic"], file["xy"], file["poi"], categories)

    def of_type(self, kind: Type) -> TrafficBatch:
        """One window of the whole period, of the stations with any activity of this type."""
        parts = [SERVICES.index(name) for name in AGGREGATES.get(kind, (kind,))]
        hours = self.traffic[parts].sum(axis=0)
        active = np.nan_to_num(hours).any(axis=0)
        if not active.any():
            raise ValueError(f"{kind}: no activity of any station, expected some")
        return hourly_window(hours[:, active], self.start, self.xy[active], self.poi[:, active])


@dataclass(frozen=True, kw_only=True)
class Download:
    """The files of both areas, of which hours before `until` are looked at."""

    records: Mapping[AreaName, Path]
    cells: Mapping[AreaName, Path]
    stations: Path
    poi: Path
    until: datetime

    def read(self, area: AreaName) -> AreaHours:
        """An area by station and hour; ValueError names what is wrong with its files."""
        source = TelecomItaliaRecords(self.records[area], area=area, cells=self.cells[area], stations=self.stations, aggregate_minutes=60)
        (city,) = source.read(area)
        assert city.xy is not None
        hours = max(int((self.until - city.start) / timedelta(hours=1)), 0)
        counts, categories = _poi_counts(self.poi, self.stations, city.sites)
        return AreaHours(city.start, city.traffic[:, :hours], city.xy, counts, categories)

    def hours(self, area: AreaName, cache: Path) -> AreaHours:
        """The same, read from the records the first time."""
        if not cache.exists():
            self.read(area).save(cache)
        return AreaHours.load(cache)


def _poi_counts(poi: Path, stations: Path, sites: Sequence[str]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """(k, s) POI of the stations `sites`, and the k categories, of a table of points or of counts."""
    sheet = Sheet(str(poi), "poi", (), Columns(), Refused(skip=False))
    if "unique_id" not in sheet.frame.columns:
        return _points_near(poi, stations, sites)
    categories = tuple(name for name in sheet.frame.columns if name != "unique_id")
    ids = sheet.texts("unique_id")
    absent = sorted(set(sites) - set(ids))
    if absent or ids.has_duplicates:
        found = f"no row of station {absent[0]!r}" if absent else f"two rows of {ids[ids.duplicated()][0]!r}"
        raise ValueError(f"{poi}: {found}, expected one of every station")
    counts = np.stack([sheet.numbers(name) for name in categories])[:, ids.get_indexer(pd.Index(sites))]
    bad = ~(counts >= 0)
    if bad.any():
        category, station = np.argwhere(bad)[0]
        raise ValueError(f"{poi}: {counts[bad][0]:g} {categories[category]!r} of station {sites[station]!r}, expected counts >= 0")
    return counts.astype(np.float32), categories


def _points_near(poi: Path, stations: Path, sites: Sequence[str]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The same of a table of points."""
    points, places = (
        Sheet(str(path), role, required, Columns(), Refused(skip=False))
        for path, role, required in ((poi, "poi", ("lat", "lon", "category")), (stations, "stations", ("unique_id", "lat", "lon")))
    )
    row = places.texts("unique_id").get_indexer(pd.Index(sites))
    latitude, longitude = (degrees[row] for degrees in places.coordinates())
    plane = LocalPlane.around(latitude, longitude)
    codes, categories = pd.factorize(points.texts("category"), sort=True)
    xy = plane.project(*points.coordinates())
    counts = count_within(xy, codes.astype(np.int64), len(categories), plane.project(latitude, longitude), _RADIUS_METRES)
    if not counts.any():
        raise ValueError(f"{poi}: no point lies within {_RADIUS_METRES:g} m of a station, expected points of both areas")
    return counts, tuple(str(name) for name in categories)


def split_weeks(whole: TrafficBatch) -> tuple[TrafficBatch, TrafficBatch, TrafficBatch]:
    """Of one long window: the hours before its last week that was measured throughout, the whole weeks of them, and that last week."""
    measured = torch.isfinite(whole.traffic).all(dim=3).flatten()
    begins = [hour for hour in range(len(measured) - WEEK + 1) if measured[hour : hour + WEEK].all()]
    begin = begins[-1] if begins else 0
    if begin < WEEK:
        raise ValueError(f"records: {begin} hours before a week that was measured throughout, expected at least {WEEK}")
    before = replace(whole, traffic=whole.traffic[:, :, :begin], known=whole.known[:, :, :begin], clock=whole.clock[:, :begin])
    reference = float(np.nanquantile(before.traffic.numpy(), 0.999))
    weeks = weeks_of(whole, range(begin % WEEK, begin, WEEK)), weeks_of(whole, [begin])
    return with_reference(before, reference), with_reference(weeks[0], reference), with_reference(weeks[1], reference)


def grouped(batch: TrafficBatch, size: int = GROUP) -> TrafficBatch:
    """The stations of every window in groups of `size`, (b * groups, c, t, size); the last is filled up with what was never measured."""
    b, c, t, s = batch.shape
    groups = -(-s // size)
    missing = groups * size - s
    station = torch.arange(groups * size).clamp(max=s - 1)

    def cut(values: Tensor, axis: int) -> Tensor:
        return values.index_select(axis, station).unflatten(axis, (groups, size)).movedim(axis, 1).flatten(0, 1)

    def each(values: Tensor) -> Tensor:
        return values.repeat_interleave(groups, dim=0)

    never = batch.traffic.new_full((b, c, t, missing), torch.nan)
    traffic = torch.cat((batch.traffic, never), dim=3).unflatten(3, (groups, size)).movedim(3, 1).flatten(0, 1)
    axes = {"poi": 2, "env": 2}
    return TrafficBatch(
        traffic=traffic,
        known=torch.isfinite(traffic),
        clock=each(batch.clock),
        step_minutes=each(batch.step_minutes),
        key=(batch.key[:, None] * groups + torch.arange(groups)).flatten(),
        context={name: cut(value, axes[name]) if name in axes else each(value) for name, value in batch.context.items()},
    )


def generated(generator: Generator, test: TrafficBatch, draws: int) -> Tensor:
    """(b, n, c, t, s) draws of windows whose stations are generated group by group."""
    b, _, _, s = test.shape
    groups = grouped(test)
    parts = torch.arange(len(groups.key)).split(_TOGETHER)
    made = torch.cat([generator.generate(groups.select(part), draws, 1) for part in parts])
    return made.unflatten(0, (b, -1)).movedim(1, 4).flatten(4)[..., :s]


def scores(test: TrafficBatch, draws: Tensor, unit: Tensor) -> dict[str, float]:
    """Table 1's measures of draws (b, n, 1, t, s), and the JSD of values; `unit` (s,)."""
    truth, made = test.traffic[:, 0] / unit, draws[:, :, 0] / unit
    pairs = truth[:, None].expand_as(made).transpose(2, 3).flatten(0, 2)
    courses, made = truth.transpose(1, 2).flatten(0, 1), made.transpose(2, 3).flatten(0, 2)
    return {
        "mae": measures.paired_mae(pairs, made),
        "rmse": measures.paired_rmse(pairs, made),
        "jsd": measures.course_divergence(pairs, made) / measures.JSD_UNIT,
        "value_jsd": measures.value_divergence(courses, made) / measures.JSD_UNIT,
    }


def stouter(categories: tuple[str, ...], before: TrafficBatch, train: TrafficBatch, test: TrafficBatch, settings: Settings) -> Tensor:
    """STOUTER's draws: graphs of the whole city, whose F_s the groups of its stations are told."""
    model = with_graphs(replace(preset(settings.model), poi_categories=categories), [before], settings)
    assert isinstance(model.conditioner, StouterConditioner)
    env = model.conditioner.embed(before).context["env"]
    told, asked = (replace(part, context={**part.context, "env": env.expand(len(part.key), -1, -1, -1)}) for part in (train, test))
    return generated(train_network(model, grouped(told), settings), asked, settings.draws)


def row(hours: AreaHours, kind: Type, name: str, settings: Settings) -> dict[str, float]:
    """One model's row for one traffic type: it is trained, and the week that it generates is scored."""
    whole = hours.of_type(kind)
    before, train, test = split_weeks(whole)
    if name == "STOUTER":
        draws = stouter(hours.categories, before, train, test, settings)
    else:
        fit, rows = _FITS[name]
        draws = generated(fit([train], settings.fitting(rows)), test, settings.draws)
    unit = torch.from_numpy(np.nanmax(whole.traffic.numpy(), axis=(0, 1, 2)))
    return scores(test, draws, unit) | {"stations": float(test.shape[3]), "weeks": float(len(train.key))}


#: How the others are trained, and on how many station-weeks a step.
_FITS: Mapping[str, tuple[Callable[[Sequence[TrafficBatch], Fitting], Generator], int]] = {
    "TCN-GAN": (fit_tcn_gan, 32),
    "VAE": (fit_vae, 64),
    "DiffWave": (fit_diffwave, 64),
}


def table(area: AreaName, types: Sequence[Type], rows: Mapping[tuple[Type, str], Mapping[str, float]]) -> str:
    """An area's half of Table 1 in Markdown, the paper's numbers in brackets where it has them."""
    header = [f"{kind} {measure.upper()}" for kind in types for measure in _MEASURES]
    lines = [f"| {area} | {' | '.join(header)} |", f"|---|{'---:|' * len(header)}"]
    for name, paper in PAPER[area].items():
        cells = []
        for kind in types:
            for i, measure in enumerate(_MEASURES):
                told = _TYPES.index(kind) * len(_MEASURES) + i
                cells.append(f"{rows[kind, name][measure]:.4f}" + (f" ({paper[told]:.4f})" if told < len(paper) else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    *,
    milan: Path,
    trentino: Path,
    milan_cells: Path,
    trentino_cells: Path,
    stations: Path,
    poi: Path,
    out: Path,
    types: tuple[Type, ...] = _TYPES,
    minutes: float = 30.0,
    draws: int = 4,
    model: str = "small",
    until: datetime = datetime(2013, 12, 23),
    json: Path | None = None,
    quick: bool = False,
) -> None:
    """Trains what is not trained yet, and prints the table.

    Args:
        milan: Folder of Milan's records.
        trentino: Folder of Trentino's records.
        milan_cells: Milan's squares.
        trentino_cells: Trentino's squares.
        stations: Base stations of both areas.
        poi: POI of both areas.
        out: Folder of what is finished.
        types: Traffic types; the paper's table has internet, call and sms.
        minutes: CPU time of a training.
        draws: Weeks generated of every station.
        model: STOUTER's preset; `paper` follows the poster.
        until: Hours from here on are not looked at.
        json: Where the figures are written.
        quick: Trains next to nothing: shows that it runs, measures nothing.
    """
    torch.set_num_threads(1)
    settings = Settings(minutes=minutes, steps=20_000, draws=draws, model=model, hidden=48)
    if quick:
        settings = Settings(minutes=0.01, steps=2, draws=1, model="tiny", hidden=4)
    download = Download(
        records={"milan": milan, "trentino": trentino},
        cells={"milan": milan_cells, "trentino": trentino_cells},
        stations=stations,
        poi=poi,
        until=until,
    )
    _claim(out, {"settings": repr(settings), "download": repr(download)})
    figures: dict[str, float] = {}
    tables = []
    for area in PAPER:
        rows = {}
        for kind, name in product(types, PAPER[area]):
            path = out / f"{area}_{kind}_{name}.json"
            if not path.exists():
                _write(path, row(download.hours(area, out / f"{area}.npz"), kind, name, settings))
            rows[kind, name] = found = json_module.loads(path.read_text())
            print(f"{path.stem}: {found}", flush=True)
            figures |= {f"{path.stem}_{measure}".lower().replace("-", "_"): value for measure, value in found.items()}
        tables.append(table(area, types, rows))
    print("\n\n".join(["", *tables]))
    write_figures(figures, json)


def _claim(out: Path, run: Mapping[str, object]) -> None:
    """Marks the folder as one of these settings and files; ValueError where it is of others."""
    claim = out / "run.json"
    if claim.exists() and json_module.loads(claim.read_text()) != run:
        raise ValueError(f"out: {out} holds rows of other settings or files ({claim}), expected an empty folder")
    _write(claim, run)


def _write(path: Path, content: Mapping[str, object]) -> None:
    Location.of(path).write_bytes((json_module.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    tyro.cli(main)
