"""Synthetic users: the planted effects are there and exactly as stated, a user depends on nobody else, and sessions follow their laws."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm, poisson

from raytraffic.sources import services
from raytraffic.sources.city import City
from raytraffic.sources.service_effects import ENVIRONMENT, HOUR_BEFORE, SAME_HOUR
from raytraffic.sources.services import ServiceCity, Usage, simulate
from raytraffic.sources.session_parameters import INVENTED, SERVICE_CATEGORIES, SERVICE_CATEGORY, read_parameters
from raytraffic.sources.synthetic import LAND_USES

TOWN = ServiceCity(name="town", users=60, grid=(6, 6), seed=4)
#: Deviations of a sum of Poisson counts from its mean, in standard deviations: beyond 4.5 once in 150,000 times.
SIGMAS = 4.5


def read(city: ServiceCity) -> City:
    (record,) = city.read(city.name)
    return record


def usage(users: int = 400, **options: Any) -> Usage:
    return simulate(replace(TOWN, users=users, **options), range(users))


@pytest.fixture(scope="module")
def plain() -> Usage:
    return usage(environment_effect=0.0, coupling=0.0)


def test_record_is_complete() -> None:
    city = read(replace(TOWN, weeks=2))
    assert city.shape == (10, 336, 60) and tuple(city.services) == SERVICE_CATEGORIES and city.unit == "bytes"
    assert city.start.isoweekday() == 1 and city.step_minutes == 60 and all("synthetic" in site for site in city.sites)
    assert city.place is not None and city.place.shape == (336, 60) and city.place.min() >= 0
    assert tuple(city.places) == TOWN.layout.ids and len(city.places) == 29  # 36 cells, of which a fifth has no station


def test_rates_at_a_place_differ_by_the_planted_factor_and_nowhere_else(plain: Usage) -> None:
    shifted = usage(environment_effect=1.0, coupling=0.0)
    np.testing.assert_array_equal(shifted.place, plain.place)
    log_factor = ENVIRONMENT @ TOWN.layout.mix  # (c, places)
    np.testing.assert_allclose(shifted.rate, plain.rate * np.exp(log_factor)[:, plain.place], rtol=1e-12)
    for use, name in enumerate(LAND_USES):
        there = TOWN.layout.mix[use][plain.place] > 0.5
        assert there.sum() > 1000, name
        without = plain.rate[:, there].sum(axis=1)
        expected = (plain.rate * np.exp(log_factor)[:, plain.place])[:, there].sum(axis=1)
        for c, service in enumerate(SERVICE_CATEGORIES):
            assert abs(plain.sessions[c][there].sum() - without[c]) < SIGMAS * math.sqrt(without[c]), (name, service)
            assert abs(shifted.sessions[c][there].sum() - expected[c]) < SIGMAS * math.sqrt(expected[c]), (name, service)
    # the last of the land uses is transport: what is counted at the hubs with the effect, over what is counted without
    c = SERVICE_CATEGORIES.index("Navigation")
    more, fewer = shifted.sessions[c][there].sum(), plain.sessions[c][there].sum()
    # the logarithm of the ratio of independent counts n and m has variance 1/n + 1/m; these are drawn of the same numbers, so it has less
    tolerance = SIGMAS * math.sqrt(1 / more + 1 / fewer)
    assert abs(math.log(more / fewer) - math.log(expected[c] / without[c])) < tolerance < math.log(expected[c] / without[c])


def test_services_raise_and_suppress_each_other_by_the_planted_factors(plain: Usage) -> None:
    coupled = usage(environment_effect=0.0, coupling=1.0)
    used = (coupled.sessions > 0).astype(float)
    before = np.concatenate([np.zeros_like(used[:, :1]), used[:, :-1]], axis=1)
    link = np.einsum("cd,dtu->ctu", SAME_HOUR, used) + np.einsum("cd,dtu->ctu", HOUR_BEFORE, before)
    np.testing.assert_allclose(coupled.rate, plain.rate * np.exp(link), rtol=1e-12)
    social, photo, games, news, way, shops = (
        SERVICE_CATEGORIES.index(name) for name in ("Social Networking", "Photo & Video", "Games", "News", "Navigation", "Lifestyle")
    )
    for source, target, earlier in ((social, photo, used), (games, news, used), (way, shops, before)):
        where = earlier[source] > 0  # predictable when the target is drawn, so the sum of count - rate is a martingale
        count, expected, unlinked = (values[target][where].sum() for values in (coupled.sessions, coupled.rate, plain.rate))
        assert abs(count - expected) < SIGMAS * math.sqrt(expected)
        assert abs(count - unlinked) > SIGMAS * math.sqrt(unlinked)  # and the test would see that nothing is planted
    for source, target, hours in ((social, photo, 0), (games, news, 0), (way, shops, 1)):  # and without coupling nothing is
        where = plain.sessions[source, : 168 - hours] > 0
        count, expected = (values[target, hours:][where].sum() for values in (plain.sessions, plain.rate))
        assert abs(count - expected) < SIGMAS * math.sqrt(expected)


def test_at_zero_an_effect_is_exactly_nothing(monkeypatch: pytest.MonkeyPatch, plain: Usage) -> None:
    for name in ("ENVIRONMENT", "SAME_HOUR", "HOUR_BEFORE"):
        monkeypatch.setattr(services, name, getattr(services, name) * 3.0 - 0.1)
    other = usage(environment_effect=0.0, coupling=0.0)
    for field in ("traffic", "sessions", "rate", "place"):
        np.testing.assert_array_equal(getattr(other, field), getattr(plain, field))
    assert not np.array_equal(usage(coupling=0.0, environment_effect=0.01).rate, plain.rate)


def test_a_service_depends_on_those_before_it_only() -> None:
    np.testing.assert_array_equal(SAME_HOUR, np.tril(SAME_HOUR, -1))
    assert SAME_HOUR.any() and HOUR_BEFORE.any()


@settings(max_examples=15, deadline=None)
@given(user=st.integers(0, 59), seed=st.sampled_from([0, 4, 2**40]))
def test_a_user_is_a_function_of_seed_and_number_alone(user: int, seed: int) -> None:
    city = replace(TOWN, seed=seed)
    together, alone = simulate(city, range(max(user - 9, 0), user + 4)), simulate(city, range(user, user + 1))
    at = user - max(user - 9, 0)
    for field in ("traffic", "sessions", "rate", "place"):
        np.testing.assert_array_equal(getattr(alone, field)[..., 0], getattr(together, field)[..., at])


def test_no_two_users_are_alike() -> None:
    town = simulate(TOWN, range(60))
    for values in (town.rate, town.sessions, town.traffic, town.place[None]):
        assert len(np.unique(values.reshape(-1, 60), axis=1).T) == 60


def test_fewer_users_are_the_first_of_more_and_a_week_is_the_first_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    town, more = read(TOWN), read(replace(TOWN, users=75, weeks=2))
    np.testing.assert_array_equal(more.traffic[:, :168, :60], town.traffic)
    assert more.place is not None and town.place is not None
    np.testing.assert_array_equal(more.place[:168, :60], town.place)
    monkeypatch.setattr(services, "_BLOCK", 16)
    np.testing.assert_array_equal(read(TOWN).traffic, town.traffic)
    assert not np.array_equal(read(replace(TOWN, seed=6)).traffic, town.traffic)


def test_bytes_are_where_sessions_are_and_at_most_an_hour_later() -> None:
    town = simulate(TOWN, range(60))
    started = town.sessions > 0
    assert (town.traffic[started] >= 0).all() and (town.traffic > 0)[started].mean() > 0.99
    near = started.copy()
    near[:, 1:] |= started[:, :-1]
    assert not town.traffic[~near].any()
    assert town.traffic[near & ~started].any()  # some sessions do reach into the next hour
    np.testing.assert_array_equal(town.traffic, np.rint(town.traffic))


def test_users_look_like_people() -> None:
    city = read(replace(TOWN, users=600))
    assert city.place is not None
    traffic = city.traffic.astype(float)
    assert (traffic == 0).mean() > 0.7
    total = np.sort(traffic.sum(axis=(0, 1)))
    assert total[-60:].sum() / total.sum() > 0.3 and total[0] < 0.05 * total.mean()
    active = (traffic.sum(axis=0) > 0).reshape(7, 24, 600).mean(axis=(0, 2))
    assert active[2:5].max() < 0.5 * active[9:22].min()  # nights are quiet
    home = city.place[3]  # at three in the morning
    assert (city.place[3::24] == home).mean() == 1.0
    business = LAND_USES.index("business")
    share = TOWN.layout.mix[business][city.place].reshape(7, 24, 600).mean(axis=2)
    assert share[:5, 10:16].mean() > 1.5 * share[5:, 10:16].mean() and share[:5, 10:16].mean() > 1.5 * share[:5, 1:5].mean()
    visited = np.array([len(np.unique(city.place[:, user])) for user in range(600)])
    assert visited.min() >= 2 and 4 <= np.median(visited) <= 9


def test_a_week_that_starts_on_a_saturday_starts_with_the_weekend() -> None:
    saturday, monday = (simulate(replace(TOWN, start=day), range(60)).place for day in (date(2024, 1, 6), date(2024, 1, 1)))
    mix = TOWN.layout.mix[LAND_USES.index("business")]
    assert mix[saturday[10:16]].mean() < 0.7 * mix[monday[10:16]].mean()
    assert mix[monday[130:136]].mean() < 0.7 * mix[monday[10:16]].mean()


@settings(max_examples=50, deadline=None)
@given(rate=st.floats(0, 400), uniform=st.floats(0, 1, exclude_max=True))
def test_counts_are_quantiles_of_the_poisson_law(rate: float, uniform: float) -> None:
    count = int(services._poisson_quantile(np.array([uniform]), np.array([rate]))[0])
    assert poisson.cdf(count, rate) >= uniform - 1e-12 and (count == 0 or poisson.cdf(count - 1, rate) <= uniform + 1e-12)


def test_places_have_the_points_of_their_land_use() -> None:
    layout, vectors = replace(TOWN, grid=(20, 20)).layout, replace(TOWN, grid=(20, 20)).place_vectors(24)
    assert replace(TOWN, grid=(20, 20)).place_poi().shape == (len(layout.ids), 17) == (320, 17)
    hubs, offices = layout.poi[:, 4], layout.poi[:, 2]
    assert np.corrcoef(layout.mix[3], hubs)[0, 1] > 0.4 and np.corrcoef(layout.mix[1], offices)[0, 1] > 0.4
    np.testing.assert_allclose(vectors[:, :17].mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(vectors[:, :17].std(axis=0), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(vectors[:, 17:21].argmax(axis=1), layout.mix.argmax(axis=0))
    assert not vectors[:, 21:].any() and (vectors[:, 17:].sum(axis=1) == 1).all()
    with pytest.raises(ValueError, match="d: 20, expected at least 21"):
        TOWN.place_vectors(20)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("users", 0),
        ("weeks", 0),
        ("environment_effect", 1.1),
        ("coupling", -0.1),
        ("sessions_per_hour", 0.0),
        ("seed", -1),
        ("grid", (0, 3)),
        ("name", ""),
    ],
)
def test_specification_is_checked(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field}: .*expected"):
        replace(TOWN, **{field: value})


def test_name_must_match() -> None:
    assert TOWN.names() == ("town",)
    with pytest.raises(ValueError, match="'village', expected 'town'"):
        next(TOWN.read("village"))


# The laws of sessions.

SHARES = {name: 1.0 + i % 7 for i, name in enumerate(SERVICE_CATEGORY)}


def folder(path: Path, **change: pd.DataFrame) -> str:
    """Made-up parameters in the published files' form; `change` replaces whole tables."""
    names = list(SERVICE_CATEGORY)
    tables = {
        "sessions_share": pd.DataFrame({"app": names, "sessions%": list(SHARES.values()), "traffic%": 1.0}),
        "pdf_coefs": pd.DataFrame(
            {"app": names[::-1], "u_g": 5.0, "s_g": 0.8, "u_0": 6.0, "s_0": 0.1, "w_0": 0.25}
            | {f"{kind}_{k}": "-" for k in (1, 2) for kind in "usw"}
        ),
        "duration_coefs": pd.DataFrame({"app": names, "a": 1000.0, "b": 0.8}),
        "arrival_coefs": pd.DataFrame(
            [
                (q, kind, "-" if kind == "peak" else 1.8, 2.0 * q if kind == "peak" else 0.0, 0.2 * q)
                for q in (0.5, 1.0)
                for kind in ("peak", "nonpeak")
            ],
            columns=["decile", "peak", "alpha", "loc", "scale"],
        ),
    }
    path.mkdir(exist_ok=True)
    for file, table in (tables | change).items():
        table.to_csv(path / f"{file}.csv", index=False)
    return str(path)


def test_published_parameters_are_read(tmp_path: Path) -> None:
    found = read_parameters(folder(tmp_path))
    assert set(found.services) == set(SERVICE_CATEGORY) and len(found.services) == 30
    assert found.share.sum() == pytest.approx(1.0) and found.shares().sum() == pytest.approx(1.0) and (found.shares() > 0).all()
    np.testing.assert_allclose(found.weight, [[0.8, 0.2, 0, 0]] * 30)  # the first component weighs 1 before they are made to sum to 1
    np.testing.assert_allclose(found.peak_mean, [1.0, 2.0])
    np.testing.assert_allclose(found.quiet_scale, [0.1, 0.2])
    city = read(replace(TOWN, parameters=str(tmp_path)))
    assert not np.array_equal(city.traffic, read(TOWN).traffic)


def test_volumes_and_durations_follow_their_laws(tmp_path: Path) -> None:
    parameters = read_parameters(folder(tmp_path))
    drawn = np.random.default_rng(0).random((20_000, 3))
    volume, seconds = services._volumes(parameters, np.full(len(drawn), SERVICE_CATEGORIES.index("Music")), drawn)
    law = kstest(np.log10(volume), lambda x: 0.8 * norm.cdf(x, 5.0, 0.8) + 0.2 * norm.cdf(x, 6.0, 0.1))
    assert law.pvalue > 1e-3
    inside = (seconds > 1.0) & (seconds < 3600.0)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(1000.0 * seconds[inside] ** 0.8, volume[inside], rtol=1e-3)  # volumes are whole bytes


def test_services_of_a_category_have_their_shares(tmp_path: Path) -> None:
    names = list(SERVICE_CATEGORY)
    durations = pd.DataFrame({"app": names, "a": 1.0, "b": 1.0})
    volumes = pd.DataFrame(
        {"app": names, "u_g": np.arange(30) * 0.2, "s_g": 1e-9} | {f"{kind}_{k}": "-" for k in range(3) for kind in "usw"}
    )
    parameters = read_parameters(folder(tmp_path, pdf_coefs=volumes, duration_coefs=durations))
    drawn = np.random.default_rng(1).random((20_000, 3))
    category = np.random.default_rng(2).integers(0, 10, len(drawn))
    volume, _ = services._volumes(parameters, category, drawn)
    service = np.abs(np.log10(volume)[:, None] - np.log10(np.rint(10 ** (np.arange(30) * 0.2)))).argmin(axis=1)
    for c, own in enumerate(SERVICE_CATEGORIES):
        members = [i for i, name in enumerate(names) if SERVICE_CATEGORY[name] == own]
        found = np.bincount(service[category == c], minlength=30)
        assert found.sum() == found[members].sum()
        share = np.array([SHARES[names[i]] for i in members]) / sum(SHARES[names[i]] for i in members)
        tolerance = SIGMAS * np.sqrt(share * (1 - share) * found.sum()) + 1e-9
        assert (np.abs(found[members] - share * found.sum()) <= tolerance).all(), own


def test_which_component_does_not_depend_on_which_service(tmp_path: Path) -> None:
    names = list(SERVICE_CATEGORY)
    own = np.where(np.array(names) == "Spotify", 4.0, 3.0)  # the two of Music
    volumes = pd.DataFrame(
        {"app": names, "u_g": own, "s_g": 1e-9, "u_0": own + 2.0, "s_0": 1e-9, "w_0": 0.25}
        | {f"{kind}_{k}": "-" for k in (1, 2) for kind in "usw"}
    )
    parameters = read_parameters(folder(tmp_path, pdf_coefs=volumes))
    drawn = np.random.default_rng(3).random((20_000, 3))
    volume, _ = services._volumes(parameters, np.full(len(drawn), SERVICE_CATEGORIES.index("Music")), drawn)
    found = np.bincount(np.rint(np.log10(volume)).astype(int), minlength=7)[3:7]
    spotify = SHARES["Spotify"] / (SHARES["Spotify"] + SHARES["Deezer"])
    expected = len(drawn) * np.outer([0.8, 0.2], [1 - spotify, spotify]).ravel()
    assert (np.abs(found - expected) < SIGMAS * np.sqrt(expected)).all()


@pytest.mark.parametrize(
    ("file", "column", "value", "message"),
    [
        ("sessions_share", "app", "Fax", r"sessions_share.csv: column 'app': 'Fax', expected one of \['Amazon'"),
        ("sessions_share", "sessions%", "0", r"sessions_share.csv: row 1, column 'sessions%': '0', expected a number > 0"),
        ("pdf_coefs", "u_g", "-", r"pdf_coefs.csv: row \d+, column 'u_g': '-', expected a number"),
        ("pdf_coefs", "w_0", "much", r"pdf_coefs.csv: row \d+, column 'w_0': 'much', expected a number"),
        ("pdf_coefs", "app", "Fax", r"pdf_coefs.csv: column 'app': '.*', expected the services of sessions_share.csv"),
        ("duration_coefs", "b", "0", r"duration_coefs.csv: column 'b': 0, expected a number other than 0"),
        ("arrival_coefs", "peak", "nonpeak", r"arrival_coefs.csv: row 1, column 'alpha': '-', expected a number > 0"),
    ],
)
def test_parameters_that_are_not_as_published_are_named(file: str, column: str, value: str, message: str, tmp_path: Path) -> None:
    folder(tmp_path)
    table = pd.read_csv(tmp_path / f"{file}.csv", dtype=str)
    table.loc[0, column] = value
    table.to_csv(tmp_path / f"{file}.csv", index=False)
    with pytest.raises(ValueError, match=message):
        read_parameters(str(tmp_path))


def test_absent_parameters_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sessions_share.csv: no such file"):
        read(replace(TOWN, parameters=str(tmp_path)))
    folder(tmp_path, duration_coefs=pd.DataFrame({"app": list(SERVICE_CATEGORY), "a": 1.0}))
    with pytest.raises(ValueError, match=r"duration_coefs.csv: no column 'b'"):
        read_parameters(str(tmp_path))


def test_invented_parameters_cover_every_category_and_say_what_they_are() -> None:
    assert (INVENTED.shares() > 0.01).all() and INVENTED.source == "invented"
    assert all(name.startswith("synthetic") for name in INVENTED.services)


def test_real_parameters_make_users(shared_data: Path) -> None:
    parameters = str(shared_data / "app_sessions")
    if not Path(parameters).is_dir():
        pytest.skip("app_sessions is not in the folder of real data")
    city = replace(TOWN, users=500, parameters=parameters, environment_effect=0.0, coupling=0.0)
    found = read_parameters(parameters)
    assert len(found.services) == 30 and len(found.peak_mean) == 10
    facebook, netflix = (found.services.index(name) for name in ("Facebook", "Netflix"))
    assert 0.3 < found.share[facebook] < 0.45 and found.mean[netflix, 0] > 6
    sessions = simulate(city, range(500)).sessions
    share = sessions.sum(axis=(1, 2)) / sessions.sum()
    # shares of the mean preference, which is not exactly that of sessions, and of users of unlike activity
    np.testing.assert_allclose(share, found.shares(), atol=0.12)
    assert (read(city).traffic == 0).mean() > 0.8
