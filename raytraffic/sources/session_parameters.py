"""What sessions of mobile services are like: how often they start, how much they carry and how long they last.

The published parameters (Zanella et al., "Characterizing and Modeling Session-Level Mobile Traffic Demands from Large-Scale
Measurements", IMC 2023, doi 10.1145/3618257.3624825) are read from a folder that the user gives; none of them is kept here. Of a session
of service i, with volume v in bytes, duration d in seconds, and of the sessions n that start in a minute at a base station::

    log10 v ~ (N(u_g, s_g^2) + sum_k w_k N(u_k, s_k^2)) / (1 + sum_k w_k)          v = a d^b
    n ~ N(loc, scale^2) in peak hours, Pareto(alpha, scale) in others, by tenth of the base stations' load

Shares of traffic are published beside the shares of sessions, but the shares of sessions times the mean volumes do not give them; here the
shares of sessions and the volumes are followed. `INVENTED` stands in where no folder is given: its numbers are made up and measure nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raytraffic.files import Location

__all__ = ["INVENTED", "SERVICE_CATEGORIES", "SERVICE_CATEGORY", "SessionParameters", "read_parameters"]

Array = NDArray[np.float64]

#: LSDM, Table I, in its order.
SERVICE_CATEGORIES = (
    "Utilities",
    "Games",
    "Entertainment",
    "News",
    "Social Networking",
    "Travel",
    "Lifestyle",
    "Navigation",
    "Music",
    "Photo & Video",
)
#: The category of each of the 30 published services.
SERVICE_CATEGORY: Mapping[str, str] = {
    "Apple iCloud": "Utilities",
    "Gmail": "Utilities",
    "Google Docs": "Utilities",
    "Google Meet": "Utilities",  # a tool of work, although people meet in it
    "Microsoft Mail": "Utilities",
    "Clash of Clans": "Games",
    "Pokemon GO": "Games",  # played on a map, which it is not used for
    "Netflix": "Entertainment",
    "Twitch": "Entertainment",
    "Youtube": "Entertainment",  # Table I: streaming platforms, video apps
    "Wikipedia": "News",  # the nearest of Table I: it is read
    "Yahoo": "News",  # a portal whose mail is the lesser part
    "Facebook": "Social Networking",
    "Facebook Messenger": "Social Networking",
    "LinkedIn": "Social Networking",  # named in Table I
    "Telegram": "Social Networking",
    "Twitter (main)": "Social Networking",  # as Weibo, which Table I names
    "WhatsApp": "Social Networking",  # as WeChat, which Table I names
    "Uber": "Travel",
    "Amazon": "Lifestyle",  # as Meituan, which Table I names: things are ordered
    "Generic Clothes": "Lifestyle",
    "Google Maps": "Navigation",
    "Waze": "Navigation",
    "Deezer": "Music",
    "Spotify": "Music",
    "Facebook Live": "Photo & Video",  # filmed by its users, unlike Entertainment
    "Instagram (main)": "Photo & Video",  # social too, but of pictures
    "Instagram (videos)": "Photo & Video",
    "SnapChat": "Photo & Video",  # messages, but of pictures
    "Twitter (videos)": "Photo & Video",
}
_COMPONENTS = ("g", "0", "1", "2")


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionParameters:
    """Parameters of n services and of q levels of load (see this module's docstring).

    category                    (n,) index into SERVICE_CATEGORIES
    share                       (n,) of all sessions, 1 in all
    mean, deviation, weight     (n, 4) of log10 bytes; a component that is not there has weight 0, the others 1 in all
    scale, exponent             (n,) a and b of v = a d^b
    peak_mean, peak_deviation, quiet_shape, quiet_scale     (q,) sessions a minute, the least loaded tenth (or other part) first
    """

    source: str
    services: tuple[str, ...]
    category: NDArray[np.int64]
    share: Array
    mean: Array
    deviation: Array
    weight: Array
    scale: Array
    exponent: Array
    peak_mean: Array
    peak_deviation: Array
    quiet_shape: Array
    quiet_scale: Array

    def shares(self) -> Array:
        """(10,) share of the sessions that are of each of SERVICE_CATEGORIES."""
        return np.bincount(self.category, weights=self.share, minlength=len(SERVICE_CATEGORIES)).astype(np.float64)


def read_parameters(folder: str) -> SessionParameters:
    """The published parameters: `sessions_share.csv`, `pdf_coefs.csv`, `duration_coefs.csv` and `arrival_coefs.csv` in a folder.

    ValueError names the file, the row and the column of what is missing or no number of the kind expected.
    """
    place = Location.of(folder)
    shares = _Coefficients(place.child("sessions_share.csv"), "app")
    unknown = [name for name in shares.names if name not in SERVICE_CATEGORY]
    if unknown:
        raise ValueError(f"{shares.file}: column 'app': {unknown[0]!r}, expected one of {sorted(SERVICE_CATEGORY)}")
    volumes, durations = (_Coefficients(place.child(file), "app", shares.names) for file in ("pdf_coefs.csv", "duration_coefs.csv"))
    arrivals = _Coefficients(place.child("arrival_coefs.csv"), "peak")
    peak, quiet = (arrivals.where(kind) for kind in ("peak", "nonpeak"))
    share = shares.column("sessions%", positive=True)
    weight = np.stack([np.ones(len(share)), *(volumes.column(f"w_{k}", absent=0.0) for k in _COMPONENTS[1:])], axis=1)
    exponent = durations.column("b")
    if not exponent.all():
        raise ValueError(
            f"{durations.file}: column 'b': 0, expected a number other than 0 for {shares.names[int((exponent == 0).argmax())]!r}"
        )
    return SessionParameters(
        source=str(folder),
        services=tuple(shares.names),
        category=np.array([SERVICE_CATEGORIES.index(SERVICE_CATEGORY[name]) for name in shares.names], dtype=np.int64),
        share=share / share.sum(),
        mean=np.stack([volumes.column(f"u_{k}", absent=None if k == "g" else 0.0) for k in _COMPONENTS], axis=1),
        deviation=np.stack([volumes.column(f"s_{k}", absent=None if k == "g" else 0.0) for k in _COMPONENTS], axis=1),
        weight=weight / weight.sum(axis=1, keepdims=True),
        scale=durations.column("a", positive=True),
        exponent=exponent,
        peak_mean=peak.column("loc", positive=True),
        peak_deviation=peak.column("scale", positive=True),
        quiet_shape=quiet.column("alpha", positive=True),
        quiet_scale=quiet.column("scale", positive=True),
    )


class _Coefficients:
    """One file of coefficients, a row for each of `names`; read in the order of `expected` where that is given."""

    def __init__(self, file: Location, key: str, expected: Sequence[str] | None = None) -> None:
        self.file = file
        try:
            with file.open_stream() as stream:
                self.frame = pd.read_csv(stream, dtype=str, keep_default_na=False)
        except FileNotFoundError as error:
            raise ValueError(f"{file}: no such file, expected one of the published session parameters") from error
        except (ValueError, OSError) as error:
            raise ValueError(f"{file}: cannot be read, expected a CSV file ({error})") from error
        self.names = list(self._text(key))
        if not self.names:
            raise ValueError(f"{file}: 0 rows, expected at least one")
        if expected is not None:
            if sorted(self.names) != sorted(expected):
                odd = sorted(set(self.names) ^ set(expected)) or sorted({name for name in self.names if self.names.count(name) > 1})
                raise ValueError(f"{file}: column {key!r}: {odd[0]!r}, expected the services of sessions_share.csv, each once")
            self.frame = self.frame.set_index(key).loc[list(expected)].reset_index()
            self.names = list(expected)

    def where(self, name: str) -> _Coefficients:
        """The rows of one name; ValueError where there is none."""
        chosen = object.__new__(_Coefficients)
        chosen.file, rows = self.file, [each == name for each in self.names]
        chosen.frame = self.frame[rows].reset_index(drop=True)
        chosen.names = [name] * sum(rows)
        if not chosen.names:
            raise ValueError(f"{self.file}: no row of {name!r}, expected some")
        return chosen

    def column(self, name: str, *, positive: bool = False, absent: float | None = None) -> Array:
        """(rows,) a column's numbers; "-" stands for `absent` where that is given."""
        text = self._text(name)
        if absent is not None:
            text = text.where(text != "-", str(absent))
        values: Array = pd.to_numeric(text, errors="coerce").to_numpy(np.float64)
        bad = ~np.isfinite(values) | (positive & (values <= 0))
        if bad.any():
            row = int(bad.argmax())
            what = "a number > 0" if positive else "a number"
            raise ValueError(f"{self.file}: row {row + 1}, column {name!r}: {text.iloc[row]!r}, expected {what}")
        return values

    def _text(self, name: str) -> pd.Series:
        if name not in self.frame:
            raise ValueError(f"{self.file}: no column {name!r} (it has {list(self.frame.columns)}), expected it")
        return self.frame[name]


#: Made up: a service, its category, its part of the sessions, mean and deviation of log10 bytes, and a and b of v = a d^b.
_INVENTED_SERVICES = (
    ("synthetic mail", "Utilities", 6.0, 4.9, 0.8, 9e3, 0.70),
    ("synthetic backup", "Utilities", 3.0, 5.8, 0.9, 2e5, 0.80),
    ("synthetic game", "Games", 4.0, 5.1, 0.8, 2e4, 0.55),
    ("synthetic film", "Entertainment", 4.0, 6.8, 0.8, 6e4, 1.00),
    ("synthetic clips", "Entertainment", 8.0, 5.9, 0.9, 2e4, 1.00),
    ("synthetic newspaper", "News", 5.0, 5.3, 0.7, 3e4, 0.45),
    ("synthetic chat", "Social Networking", 20.0, 4.6, 0.8, 1e4, 0.50),
    ("synthetic feed", "Social Networking", 18.0, 5.6, 0.9, 4e4, 0.70),
    ("synthetic tickets", "Travel", 2.0, 5.0, 0.7, 3e4, 0.40),
    ("synthetic shop", "Lifestyle", 7.0, 5.4, 0.8, 3e4, 0.70),
    ("synthetic map", "Navigation", 6.0, 5.2, 0.8, 2e4, 0.55),
    ("synthetic radio", "Music", 5.0, 5.7, 0.7, 5e4, 0.60),
    ("synthetic album", "Photo & Video", 12.0, 5.8, 0.9, 5e4, 0.85),
)
#: Made up: mean sessions a minute in peak hours of five parts of the base stations, and in the quiet hours the scale of their Pareto law.
_INVENTED_LEVELS = ((2.0, 0.3), (5.0, 0.8), (9.0, 1.5), (16.0, 2.5), (38.0, 6.0))


def _invented() -> SessionParameters:
    table = _INVENTED_SERVICES
    numbers = np.array([row[2:] for row in table], dtype=np.float64)
    levels = np.array(_INVENTED_LEVELS)
    return SessionParameters(
        source="invented",
        services=tuple(row[0] for row in table),
        category=np.array([SERVICE_CATEGORIES.index(row[1]) for row in table], dtype=np.int64),
        share=numbers[:, 0] / numbers[:, 0].sum(),
        mean=numbers[:, 1:2],
        deviation=numbers[:, 2:3],
        weight=np.ones((len(table), 1)),
        scale=numbers[:, 3],
        exponent=numbers[:, 4],
        peak_mean=levels[:, 0],
        peak_deviation=levels[:, 0] / 10,
        quiet_shape=np.full(len(levels), 2.0),
        quiet_scale=levels[:, 1],
    )


#: Plausible parameters that nobody measured.
INVENTED = _invented()
