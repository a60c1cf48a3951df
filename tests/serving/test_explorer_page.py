"""The explorer as a user meets it: real keys and clicks in Chromium, on a wide and a narrow screen, in light and dark.

With RAYTRAFFIC_PICTURES=folder the screenshots are kept there (docs/pictures/explorer_*.png are made that way).
"""

from __future__ import annotations

import csv
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from raytraffic.serving.admission import Busy
from raytraffic.serving.routes import build_api
from raytraffic.serving.service import ForecastService, Stages
from tests.serving.conftest import HOSTILE
from tests.serving.local_stages import listening, service_of

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 90_000  # for a machine that has more to do; nothing waits longer than it must
sync_api.expect.set_options(timeout=PATIENCE_MS)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")]


async def always() -> bool:
    """Ready."""
    return True


@dataclass
class Visit:
    """A page, what it asked other hosts for, and what its console complained of."""

    page: Any
    foreign: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def status(self, text: str, where: str = "#forecast-status") -> None:
        """Waits until a status says this."""
        sync_api.expect(self.page.locator(where)).to_contain_text(text)

    def ready(self) -> None:
        """Waits until the city's sites are listed: the page is there before."""
        sync_api.expect(self.page.locator("#site-count")).to_contain_text(" sites")
        sync_api.expect(self.page.locator("#sites")).to_be_visible()

    def traces(self, chart: str = "chart") -> dict[str, dict[str, Any]]:
        """What plotly draws, by name."""
        script = "id => document.getElementById(id).data.map(({name, type, x, y, z, fillcolor}) => ({name, type, x, y, z, fillcolor}))"
        return {str(trace["name"]): trace for trace in self.page.evaluate(script, chart)}

    def layout(self, name: str, chart: str = "chart") -> Any:
        """A field of the chart's layout."""
        return self.page.evaluate("([id, name]) => document.getElementById(id)._fullLayout[name]", [chart, name])

    def click_site(self, row: int, column: int) -> None:
        """A click on the cell of the map's lattice (row 0 in the south)."""
        place = "[x, y] = ((l, b) => [l.xaxis._offset + l.xaxis.l2p(c), l.yaxis._offset + l.yaxis.l2p(r)])"
        script = f"([r, c]) => {{ const map = document.getElementById('map'); let x, y; {place}(map._fullLayout); return [x, y]; }}"
        pitch = self.page.evaluate("() => [document.getElementById('map').data[0].dy, document.getElementById('map').data[0].dx]")
        x, y = self.page.evaluate(script, [row * pitch[0], column * pitch[1]])
        box = self.page.locator("#map").bounding_box()
        self.page.mouse.click(box["x"] + x, box["y"] + y)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def contexts(browser: Any) -> Callable[..., Any]:
    """One context for each kind of screen: its cache keeps plotly."""
    made: dict[str, Any] = {}

    def of(**settings: Any) -> Any:
        key = str(sorted(settings.items()))
        if key not in made:
            made[key] = browser.new_context(**({"viewport": {"width": 1360, "height": 900}} | settings))
            made[key].set_default_timeout(PATIENCE_MS)
        return made[key]

    return of


@pytest.fixture(scope="module")
def address(explorer_service: ForecastService) -> Iterator[str]:
    with listening(build_api(explorer_service, always)) as address:
        yield address


@pytest.fixture
def visit(contexts: Callable[..., Any]) -> Iterator[Callable[..., Visit]]:
    """Opens the explorer of an address; in the end no other host was asked for anything and the console is silent."""
    visits: list[Visit] = []

    def opened(address: str, path: str = "/explore", **settings: Any) -> Visit:
        made = Visit(contexts(**settings).new_page())
        visits.append(made)
        made.page.on("request", lambda request: _note(made.foreign, request.url, address))
        made.page.on("console", lambda message: made.complaints.append(message.text) if message.type in ("error", "warning") else None)
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        made.page.goto(address + path)
        return made

    yield opened
    for made in visits:
        made.page.close()
        assert made.foreign == []
        assert made.complaints == []


def _note(foreign: list[str], url: str, address: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(address).netloc:
        foreign.append(url)


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[Visit, str], None]:
    """Keeps a screenshot of the whole page under a name."""
    folder = Path(os.environ.get("RAYTRAFFIC_PICTURES", tmp_path))

    def taken(made: Visit, name: str) -> None:
        made.page.wait_for_timeout(150)  # plotly has drawn
        made.page.screenshot(path=folder / f"explorer_{name}.png", full_page=True)

    return taken


def choose_by_keyboard(made: Visit, name: str) -> None:
    """Searches a site and takes it from the list, by keys alone."""
    made.page.locator("#search").focus()
    made.page.keyboard.type(name)
    made.page.keyboard.press("Tab")
    assert made.page.evaluate("document.activeElement.id") == "sites"
    made.page.keyboard.press("ArrowDown")
    made.status(f"Forecast of {name} from")


def test_a_site_is_chosen_by_keyboard_and_its_forecast_shown(
    address: str, visit: Callable[..., Visit], picture: Callable[[Visit, str], None]
) -> None:
    made = visit(address)
    made.page.locator("#city").select_option("dawnport")
    made.ready()
    choose_by_keyboard(made, "r3c9")
    traces = made.traces()
    assert list(traces) == ["90 %", "80 %", "50 %", "median", "measured", "truth"]
    assert len(traces["median"]["y"]) == 16 and len(traces["measured"]["y"]) == 64
    assert traces["median"]["x"][0] == "2024-01-14T16:00"  # as late as the whole truth is known
    assert None not in traces["truth"]["y"]
    assert made.layout("yaxis")["title"]["text"] == "traffic: MB in 30 min"
    assert made.layout("xaxis")["title"]["text"] == "Local time"
    assert made.page.locator("#table tbody tr").count() == 64 + 16
    assert made.page.locator("#table thead th").all_text_contents()[:4] == ["Time", "Measured", "Mean", "5 %"]
    assert made.page.locator("#table tbody th").first.text_content() == "2024-01-13 08:00"
    made.page.locator("#map-slot").focus()
    picture(made, "light")


def test_a_site_is_chosen_by_clicking_the_map_and_the_task_switched(address: str, visit: Callable[..., Visit]) -> None:
    made = visit(address)
    made.ready()
    sync_api.expect(made.page.locator("#map .hm")).to_have_count(1)
    made.click_site(row=4, column=9)  # the eight rows are counted from the south
    made.status("Forecast of r3c9 from")
    assert made.page.locator("#sites").input_value() == "r3c9"
    made.page.get_by_label("long").check()
    made.status("from Sun, 14 Jan 2024, 00:00")
    assert len(made.traces()["median"]["y"]) == 48
    made.page.get_by_label("generation").check()
    made.status("from Sat, 13 Jan 2024, 16:00")
    assert len(made.traces()["median"]["y"]) == 64 and made.traces()["measured"]["y"] == []
    sync_api.expect(made.page.locator("#chart-caption")).to_contain_text("own measurements were hidden")
    made.page.get_by_label("own horizon").check()
    made.page.get_by_label("Horizon (slots)").fill("5")
    made.page.get_by_role("button", name="After the last measurement").click()
    made.status("from Mon, 15 Jan 2024, 00:00")
    assert len(made.traces()["median"]["y"]) == 5 and set(made.traces()["truth"]["y"]) == {None}
    made.page.get_by_label("First forecast slot").fill("2024-01-10T12:00")
    made.status("from Wed, 10 Jan 2024, 12:00")
    made.page.get_by_label("Draws").fill("0")
    made.page.get_by_role("button", name="Forecast", exact=True).click()
    made.status("Draws: Value must be greater than or equal to 1")


def test_the_numbers_are_the_servers(address: str, visit: Callable[..., Visit]) -> None:
    made = visit(address)
    made.ready()
    with made.page.expect_response("**/forecast") as response:
        choose_by_keyboard(made, "r2c3")
    answer = response.value.json()
    with made.page.expect_download() as download:
        made.page.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == "dawnport_r2c3_2024-01-14T16-00.csv"
    with Path(download.value.path()).open(newline="") as file:
        rows = list(csv.DictReader(file))
    before, after = ([row for row in rows if row["part"] == part] for part in ("history", "forecast"))
    assert {(row["city"], row["station"], row["service"]) for row in rows} == {("dawnport", "r2c3", "traffic")}
    assert [row["time"] for row in rows] == answer["history"]["ds"] + answer["forecast"]["ds"]
    assert [float(row["measured"]) for row in rows] == answer["history"]["traffic"] + answer["truth"]["traffic"]
    for name in ("mean", "0.05", "0.1", "0.25", "0.5", "0.75", "0.9", "0.95"):
        assert [float(row[name]) for row in after] == answer["forecast"][name]
        assert {row[name] for row in before} == {""}


def test_the_map_plays(address: str, visit: Callable[..., Visit]) -> None:
    made = visit(address)
    slot = made.page.locator("#map-slot")
    sync_api.expect(made.page.locator("#map .hm")).to_have_count(1)
    slot.focus()
    made.page.keyboard.press("Home")
    sync_api.expect(made.page.locator("#map-caption")).to_contain_text("Mon, 1 Jan 2024, 00:00")
    first = made.traces("map")["sites"]
    made.page.get_by_role("button", name="Play").press("Enter")
    sync_api.expect(made.page.get_by_role("button", name="Pause")).to_be_visible()
    sync_api.expect(made.page.locator("#map-caption")).to_contain_text("Mon, 1 Jan 2024, 01:00")
    made.page.get_by_role("button", name="Pause").click()
    reached = int(slot.input_value())
    made.page.wait_for_timeout(1000)
    assert int(slot.input_value()) == reached >= 2
    made.page.get_by_label("Go to").fill("2024-01-08T18:30")
    sync_api.expect(made.page.locator("#map-caption")).to_contain_text("Mon, 8 Jan 2024, 18:30")
    assert first != made.traces("map")["sites"]
    assert slot.get_attribute("aria-valuetext") == "Mon, 8 Jan 2024, 18:30"


def test_who_asks_for_less_motion_moves_the_map_slot_by_slot(address: str, visit: Callable[..., Visit]) -> None:
    made = visit(address, reduced_motion="reduce")
    sync_api.expect(made.page.locator("#map .hm")).to_have_count(1)
    before = int(made.page.locator("#map-slot").input_value())
    made.page.get_by_role("button", name="Next slot").click()
    made.page.wait_for_timeout(1200)
    assert int(made.page.locator("#map-slot").input_value()) == before + 1


@pytest.mark.parametrize(("scheme", "name"), [("light", "narrow"), ("dark", "narrow_dark")])
def test_a_narrow_screen_needs_no_scrolling_sideways(
    address: str, visit: Callable[..., Visit], picture: Callable[[Visit, str], None], scheme: str, name: str
) -> None:
    made = visit(address, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    made.ready()
    choose_by_keyboard(made, "r3c9")
    made.page.get_by_text("Numbers", exact=True).click()
    assert made.page.evaluate("document.documentElement.scrollWidth") == 360
    beyond = """() => [...document.querySelectorAll('main *:not(table, table *, svg *)')]
      .filter(e => e.getBoundingClientRect().right > 360.5).map(e => e.id || e.tagName)"""
    assert made.page.evaluate(beyond) == []
    picture(made, name)


def test_the_page_is_dark_where_the_user_wants_it(address: str, visit: Callable[..., Visit], picture: Callable[[Visit, str], None]) -> None:
    made = visit(address, color_scheme="dark")
    made.ready()
    choose_by_keyboard(made, "r3c9")
    assert made.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"
    assert made.layout("font")["color"] == "#e3e7eb"
    made.page.get_by_label("generation").check()
    made.status("from Sat, 13 Jan 2024, 16:00")
    picture(made, "dark")
    made.page.emulate_media(color_scheme="light")
    made.page.wait_for_function("document.getElementById('chart')._fullLayout.font.color === '#24292f'")


def test_stations_without_places_and_names_that_look_like_code(
    address: str, visit: Callable[..., Visit], picture: Callable[[Visit, str], None]
) -> None:
    made = visit(address)
    made.page.locator("#city").select_option("lone & far/away")
    sync_api.expect(made.page.locator("#map-caption")).to_contain_text("Schematic: the store does not know")
    made.page.locator("#sites").select_option(HOSTILE)
    made.status(f"Forecast of {HOSTILE} from")
    made.page.locator("#map").hover(position={"x": 60, "y": 60})
    assert made.page.locator("img[src=x]").count() == 0
    picture(made, "stations")
    with made.page.expect_download() as download:
        made.page.get_by_role("button", name="Download CSV").click()
    with Path(download.value.path()).open(newline="") as file:
        assert {row["station"] for row in csv.DictReader(file)} == {HOSTILE}


def test_every_control_has_a_name_and_takes_the_keyboard(address: str, visit: Callable[..., Visit]) -> None:
    made = visit(address)
    made.ready()
    script = """() => [...document.querySelectorAll('main input, main select, main button')].filter(e => e.offsetParent !== null)
      .map(e => [e.id || e.value, e.labels.length ? e.labels[0].textContent.trim() : e.textContent.trim(), e.disabled])"""
    controls = made.page.evaluate(script)
    assert len(controls) >= 15
    assert [name for name, label, _ in controls if not label] == []
    reached = set()
    made.page.locator("body").press("Tab")
    for _ in range(60):
        reached.add(made.page.evaluate("document.activeElement.id || document.activeElement.value"))
        made.page.keyboard.press("Tab")
    radios = {"long", "generation", "horizon"}  # reached by arrow keys within their group
    assert {name for name, _, disabled in controls if not disabled} - radios - reached == set()


def test_a_server_without_a_store_says_how_to_start_it_with_one(
    explorer_service: ForecastService, visit: Callable[..., Visit], picture: Callable[[Visit, str], None]
) -> None:
    with listening(build_api(service_of(*explorer_service.models.values()), always)) as address:
        made = visit(address)
        made.status("raytraffic serve --checkpoints NAME=FOLDER --store FOLDER", "#status")
        assert not made.page.locator("#main").is_visible()
        picture(made, "empty")


class _BusyOnce:
    """Stages that are busy at first, and then fail as the request's draws say."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.calls = 0

    async def forecast(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise Busy(1.5)
        return await self.stages.forecast(*arguments)


def test_a_busy_server_is_asked_again_and_errors_are_shown(explorer_service: ForecastService, visit: Callable[..., Visit]) -> None:
    stages = _BusyOnce(explorer_service.stages)
    with listening(build_api(replace(explorer_service, stages=stages), always)) as address:
        made = visit(address)
        made.ready()
        made.page.locator("#sites").select_option("r3c9")
        made.status("The server is busy. It is asked again in 2 s.")
        began = time.monotonic()
        made.status("Forecast of r3c9 from")
        assert stages.calls == 2 and time.monotonic() - began > 1
        made.page.get_by_label("Draws").fill("999")
        made.page.keyboard.press("Tab")
        made.status("draws: 999, expected at most 200")
        assert not made.page.locator("#chart-figure").is_visible()
        assert made.page.locator("#download").is_disabled()
        assert {"503" in text or "422" in text for text in made.complaints} == {True}
        made.complaints.clear()  # the browser's own lines about those two answers
