// The explorer: a city's sites on a map that plays over time, and the forecast of the chosen one. Text from data is only ever set as text.
// Times are the city's wall clock without zone; they are counted in minutes as if they were UTC, so that no browser's zone moves them.

const QUANTILES = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95];
// Central intervals from the widest to the narrowest, with the opacity that sets them apart in grey as well (as in our reports).
const BANDS = [["0.05", "0.95", "90 %", 0.16], ["0.1", "0.9", "80 %", 0.22], ["0.25", "0.75", "50 %", 0.34]];
const SHOWN_SITES = 300;
const FRAME_MS = 450;
const PAUSE_MS = 400; // between the last change of a setting and the request
const HEAT_VALUES = 300000; // of one request for the map

const at = (id) => document.getElementById(id);
const minutes = (iso) => Date.parse(`${iso}Z`) / 60000;
const iso = (minute) => new Date(minute * 60000).toISOString().slice(0, 16);
const day = (minute) => new Date(minute * 60000).toLocaleDateString("en-GB", { weekday: "short", day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const clock = (minute) => `${day(minute)}, ${iso(minute).slice(11)}`;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const number = (value) => (value === null ? "–" : value === 0 ? "0" : Number(value.toPrecision(4)).toLocaleString("en-GB", { maximumSignificantDigits: 4 }));
// plotly reads a few tags in its texts; a name is a name.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 40rem)");

const state = { models: [], city: null, places: null, station: null, slot: 0, heat: new Map(), playing: null, asking: null, timer: null, answer: null, ownIssue: false };

class Refusal extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function api(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer. Is it running?");
  }
  if (response.ok) return response.json();
  const { detail } = await response.json().catch(() => ({}));
  const told = Array.isArray(detail) ? detail.map((problem) => `${problem.loc.slice(1).join(".")}: ${problem.msg}`).join("\n") : detail;
  throw new Refusal(response.status, told || `The server answered ${response.status}.`, Number(response.headers.get("Retry-After")));
}

function tell(id, text, kind = "") {
  at(id).textContent = text;
  at(id).className = `notice ${kind}`;
  at(id).hidden = !text;
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => Object.assign(element("option", text), { value })));
}

function look() {
  const [ink, muted, line] = ["ink", "muted", "line"].map(colour);
  const axis = { gridcolor: line, linecolor: muted, tickcolor: muted, zeroline: false, automargin: true, title: { font: { size: 13 }, standoff: 8 } };
  return {
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 13, color: ink },
      hoverlabel: { bgcolor: colour("soft"), bordercolor: muted, font: { color: ink, size: 13 } },
    },
    axis,
  };
}

const CONFIG = { displayModeBar: false, displaylogo: false, responsive: true, scrollZoom: false, doubleClick: false };

// ---- the city and its map

const step = () => state.city.step_minutes;
const first = () => minutes(state.city.first);
const lastSlot = () => (minutes(state.city.last) - first()) / step();
const service = () => at("service").value;
const unit = () => (state.city.unit === "unknown" ? "" : ` ${state.city.unit}`);
const perSlot = () => (unit() ? `${state.city.unit} in ${step()} min` : `unit not stated, ${step()} min slots`);

async function chooseCity(city) {
  stop();
  clearForecast();
  Object.assign(state, { city, places: null, station: null, heat: new Map(), ownIssue: false });
  options(at("service"), city.services.map((name) => [name, name]));
  at("service-field").hidden = city.services.length < 2;
  at("sites").replaceChildren();
  at("site-count").textContent = "";
  Object.assign(at("map-slot"), { max: lastSlot(), value: 0 });
  for (const id of ["map-time", "issue"]) Object.assign(at(id), { min: city.first, max: city.last, step: step() * 60 });
  at("issue").max = iso(minutes(city.last) + step());
  tell("map-status", `Loading the sites of ${city.name} …`);
  try {
    const places = await api(`v1/cities/${encodeURIComponent(city.name)}/stations`);
    if (state.city !== city) return;
    state.places = prepared(places);
    tell("map-status", "");
  } catch (error) {
    if (state.city === city) tell("map-status", error.message, "error");
    return;
  }
  listSites();
  defaultIssue();
  await showSlot(Math.max(0, Math.min(lastSlot(), (minutes(at("issue").value) - first()) / step())));
}

// Positions for plotly; sites that fill a lattice are drawn as a picture, which plays smoothly with thousands of them.
function prepared(places) {
  const scale = places.layout === "metres" ? 1000 : 1;
  const axes = ["x", "y"].map((name) => {
    const all = places.stations.map((station) => station[name] / scale);
    const lowest = all.reduce((least, value) => Math.min(least, value), Infinity);
    const values = all.map((value) => value - lowest);
    const different = [...new Set(values)].sort((a, b) => a - b);
    const pitch = different.slice(1).reduce((least, value, i) => Math.min(least, value - different[i]), Infinity);
    const index = values.map((value) => (pitch === Infinity ? 0 : value / pitch));
    const regular = index.every((value) => Math.abs(value - Math.round(value)) < 0.01);
    return { values, pitch: pitch === Infinity ? 1 : pitch, index: index.map(Math.round), regular, count: Math.round(Math.max(0, ...different) / (pitch === Infinity ? 1 : pitch)) + 1 };
  });
  const [x, y] = axes;
  const cells = new Map(places.stations.map((_, i) => [y.index[i] * x.count + x.index[i], i]));
  const lattice = x.regular && y.regular && cells.size === places.stations.length && x.count * y.count <= 4 * places.stations.length + 100;
  const of = new Map(places.stations.map((station, i) => [station.id, i]));
  return { ...places, xs: x.values, ys: y.values, lattice: lattice ? { x, y, cells } : null, of };
}

function range() {
  const number = state.city.services.indexOf(service());
  const means = state.places.stations.map((station) => station.mean[number]).filter((mean) => mean > 0).sort((a, b) => a - b);
  if (!means.length) return [1, 10];
  const high = means.at(-1) * 2.5;
  return [Math.max(means[Math.floor(means.length * 0.05)] / 5, high / 1e4), high];
}

function ticks([low, high]) {
  const steps = high / low > 300 ? [1] : [1, 2, 5];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const factor of steps) if (factor * 10 ** power >= low && factor * 10 ** power <= high) found.push(factor * 10 ** power);
  }
  return { tickvals: found.map(Math.log10), ticktext: found.map(number) };
}

function drawMap(values) {
  const { places } = state;
  const [low, high] = range();
  const shade = values.map((value) => (value === null ? null : Math.log10(Math.min(Math.max(value, low), high))));
  const told = places.stations.map((station, i) => `${plain(station.id)}<br>${number(values[i])} ${plain(perSlot())}`);
  const bar = { title: { text: plain(perSlot()), side: narrow.matches ? "top" : "right", font: { size: 13 } }, thickness: 12, outlinewidth: 0, ...ticks([low, high]), xpad: 6, ...(narrow.matches ? { orientation: "h", y: 1, yanchor: "bottom" } : {}) };
  const common = { name: "sites", hovertemplate: "%{text}<extra></extra>", showlegend: false };
  const scale = { colorscale: "Cividis", colorbar: bar };
  let sites;
  if (places.lattice) {
    const { x, y, cells } = places.lattice;
    const grid = (of) => Array.from({ length: y.count }, (_, row) => Array.from({ length: x.count }, (__, column) => of(cells.get(row * x.count + column))));
    const z = grid((i) => (i === undefined ? null : shade[i]));
    const gap = places.stations.length > 2500 ? 0 : 1;
    sites = { type: "heatmap", z, text: grid((i) => (i === undefined ? "" : told[i])), x0: 0, dx: x.pitch, y0: 0, dy: y.pitch, xgap: gap, ygap: gap, zmin: Math.log10(low), zmax: Math.log10(high), hoverongaps: false, ...scale, ...common };
  } else {
    const marker = { color: shade.map((value) => value ?? Math.log10(low)), opacity: shade.map((value) => (value === null ? 0.25 : 1)), size: 10, cmin: Math.log10(low), cmax: Math.log10(high), line: { width: 0.5, color: colour("muted") }, ...scale };
    sites = { type: "scatter", mode: "markers", x: places.xs, y: places.ys, text: told, marker, ...common };
  }
  const i = places.of.get(state.station?.id);
  const ring = (width, ink) => ({ type: "scatter", mode: "markers", x: i === undefined ? [] : [places.xs[i]], y: i === undefined ? [] : [places.ys[i]], hoverinfo: "skip", showlegend: false, marker: { symbol: "circle-open", size: 18, color: ink, line: { width } } });
  const { layout, axis } = look();
  const metres = places.layout === "metres";
  const place = (title) => ({ ...axis, fixedrange: true, showgrid: false, ...(metres ? { title: { ...axis.title, text: title, standoff: 16 } } : { showticklabels: false, ticks: "" }) });
  if (at("map").dataset.narrow !== String(narrow.matches)) {
    Plotly.purge(at("map")); // a colour bar that turns leaves its old self and its margins behind
    Object.assign(at("map").dataset, { narrow: String(narrow.matches), listens: "" });
  }
  Plotly.react(at("map"), [sites, ring(6, "#ffffff"), ring(3, "#d55e00")], { ...layout, dragmode: false, hovermode: "closest", margin: { l: 8, r: 8, t: 12, b: 8 }, xaxis: { ...place("km east"), constrain: "domain" }, yaxis: { ...place("km north"), scaleanchor: "x", constrain: "domain" } }, CONFIG);
  if (!at("map").dataset.listens) {
    at("map").dataset.listens = "yes";
    at("map").on("plotly_click", ({ points: [point] }) => {
      const index = state.places.lattice ? state.places.lattice.cells.get(point.pointIndex[0] * state.places.lattice.x.count + point.pointIndex[1]) : point.pointIndex;
      if (index !== undefined) chooseSite(state.places.stations[index]);
    });
  }
  const kind = metres ? "Positions in kilometres from the westernmost and the southernmost site." : "Schematic: the store does not know where every site lies.";
  at("map-caption").textContent = `${service()} at ${clock(first() + state.slot * step())}. ${kind}`;
}

const chunkSlots = () => Math.max(12, Math.min(168, Math.floor(HEAT_VALUES / state.places.stations.length)));

function heat(slot) {
  const { city } = state;
  const chunk = Math.floor(slot / chunkSlots());
  const key = `${service()}|${chunk}`;
  const start = chunk * chunkSlots();
  if (!state.heat.has(key)) {
    const count = Math.min(chunkSlots(), lastSlot() + 1 - start);
    const query = new URLSearchParams({ start: iso(first() + start * step()), slots: count, service: service() });
    const loading = api(`v1/cities/${encodeURIComponent(city.name)}/heat?${query}`).then((answer) => answer.values);
    loading.catch(() => state.heat.delete(key));
    state.heat.set(key, loading);
    if (state.heat.size > 24) state.heat.delete(state.heat.keys().next().value);
  }
  return state.heat.get(key).then((values) => values[slot - start]);
}

// Shows the map at a slot; whoever asked for a later one meanwhile wins. Returns whether it is shown.
async function showSlot(slot) {
  const { city } = state;
  state.slot = slot;
  Object.assign(at("map-slot"), { value: slot });
  at("map-slot").setAttribute("aria-valuetext", clock(first() + slot * step()));
  at("map-time").value = iso(first() + slot * step());
  const slow = setTimeout(() => tell("map-status", "Loading the map …"), 250);
  try {
    const values = await heat(slot);
    if (state.city !== city || state.slot !== slot) return false;
    drawMap(values);
    tell("map-status", "");
    return true;
  } catch (error) {
    if (state.city === city) {
      tell("map-status", error.message, "error");
      stop();
    }
    return false;
  } finally {
    clearTimeout(slow);
  }
}

function stop() {
  clearTimeout(state.playing);
  state.playing = null;
  at("play").textContent = still.matches ? "Next slot" : "Play";
}

async function advance() {
  const next = state.slot < lastSlot() ? state.slot + 1 : 0;
  if (state.playing !== null) heat(Math.min(lastSlot(), next + 8)).catch(() => {}); // an error is shown when its turn comes
  const shown = await showSlot(next);
  if (state.playing !== null && shown) state.playing = setTimeout(advance, FRAME_MS);
  else if (state.playing !== null) stop();
}

function play() {
  if (!state.places) return;
  if (state.playing !== null) {
    stop();
  } else if (still.matches) {
    advance(); // who asks for less motion moves the map slot by slot
  } else {
    at("play").textContent = "Pause";
    state.playing = setTimeout(advance, 0);
  }
}

// ---- the sites

function listSites() {
  const wanted = at("search").value.trim().toLowerCase();
  const found = state.places.stations.filter((station) => station.id.toLowerCase().includes(wanted));
  const shown = found.slice(0, SHOWN_SITES);
  const index = state.city.services.indexOf(service());
  options(at("sites"), shown.map((station) => [station.id, `${station.id}  (mean ${number(station.mean[index])}${unit()})`]));
  at("sites").value = shown.some((station) => station.id === state.station?.id) ? state.station.id : "";
  const more = found.length > shown.length ? `; the first ${shown.length} are listed, search for others` : "";
  at("site-count").textContent = `${found.length} of ${state.places.stations.length} sites${more}. Means are of a slot in the newest week.`;
}

function chooseSite(station) {
  state.station = station;
  if (![...at("sites").options].some((option) => option.value === station.id)) at("search").value = "";
  listSites();
  showSlot(state.slot);
  forecastSoon();
}

// ---- the forecast

const task = () => document.querySelector("input[name=task]:checked").value;
const model = () => state.models.find((one) => one.name === at("model").value);

function answeredSlots() {
  const { window: slots } = model();
  return { short: Math.round(slots / 4), long: Math.round((slots * 3) / 4), generation: slots, horizon: Number(at("horizon").value) || 1 }[task()];
}

// As late as the whole truth is known, unless the user has chosen a time.
function defaultIssue() {
  if (!state.ownIssue) at("issue").value = iso(Math.max(first(), minutes(state.city.last) + step() * (1 - answeredSlots())));
}

function clearForecast() {
  clearTimeout(state.timer);
  state.asking?.abort();
  state.answer = null;
  at("chart-figure").hidden = at("numbers").hidden = true;
  at("download").disabled = true;
  tell("forecast-status", "Choose a site on the map or in the list.");
}

function forecastSoon() {
  clearTimeout(state.timer);
  if (state.station) state.timer = setTimeout(forecast, PAUSE_MS);
}

async function forecast() {
  clearTimeout(state.timer);
  state.asking?.abort();
  if (!state.station) return tell("forecast-status", "Choose a site on the map or in the list.");
  if (!at("ask").checkValidity()) {
    const wrong = at("ask").querySelector(":invalid:not(fieldset)");
    return tell("forecast-status", `${wrong.labels[0].textContent.trim()}: ${wrong.validationMessage}`, "error");
  }
  const asking = (state.asking = new AbortController());
  const { city, station } = state;
  const settings = task() === "horizon" ? { horizon: Number(at("horizon").value) } : { task: task() };
  const body = { station: station.id, issue: at("issue").value, quantiles: QUANTILES, draws: Number(at("draws").value), seed: Number(at("seed").value), model: at("model").value, ...settings };
  tell("forecast-status", `Forecasting ${station.id} …`);
  at("chart-figure").setAttribute("aria-busy", "true");
  const began = Date.now();
  try {
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: asking.signal };
    const answer = await api(`v1/cities/${encodeURIComponent(city.name)}/forecast`, request);
    if (state.asking !== asking) return;
    state.answer = answer;
    at("download").disabled = false;
    showAnswer();
    tell("forecast-status", `Forecast of ${answer.station} from ${clock(minutes(answer.issue))}, made in ${((Date.now() - began) / 1000).toFixed(1)} s.`);
  } catch (error) {
    if (error.name === "AbortError" || state.asking !== asking) return;
    if (error.status === 503) waitAndRetry(Math.max(1, error.retryAfter || 1));
    else {
      clearForecast();
      tell("forecast-status", error.message, "error");
    }
  } finally {
    if (state.asking === asking) at("chart-figure").removeAttribute("aria-busy");
  }
}

function waitAndRetry(seconds) {
  if (seconds <= 0) return forecast();
  tell("forecast-status", `The server is busy. It is asked again in ${seconds} s.`, "busy");
  state.timer = setTimeout(() => waitAndRetry(seconds - 1), 1000);
}

// The columns of a part of the answer, of one service.
function columns(part, name) {
  const rows = part.service.flatMap((value, i) => (value === name ? [i] : []));
  return Object.fromEntries(Object.entries(part).map(([key, values]) => [key, rows.map((i) => values[i])]));
}

function transparent(hex, opacity) {
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${red},${green},${blue},${opacity})`;
}

function showAnswer() {
  const { answer } = state;
  const [history, truth, fan] = [answer.history, answer.truth, answer.forecast].map((part) => columns(part, service()));
  at("chart-figure").hidden = at("numbers").hidden = false;
  drawChart(history, truth, fan);
  fillTable(history, truth, fan);
}

function drawChart(history, truth, fan) {
  const { answer } = state;
  const [blue, orange, ink] = ["forecast", "truth", "ink"].map(colour);
  const line = (x, y, name, style) => ({ type: "scatter", mode: "lines", x, y, name, hovertemplate: "%{y:,.4~r}", line: { width: 2, ...style } });
  const bands = BANDS.flatMap(([low, high, name, opacity]) => [
    { ...line(fan.ds, fan[low], name, { width: 0 }), hoverinfo: "skip", hovertemplate: undefined, showlegend: false },
    { ...line(fan.ds, fan[high], name, { width: 0 }), hoverinfo: "skip", hovertemplate: undefined, fill: "tonexty", fillcolor: transparent(blue, opacity) },
  ]);
  const traces = [
    ...bands,
    line(fan.ds, fan["0.5"], "median", { color: blue, width: 2.5 }),
    line(history.ds, history.traffic, "measured", { color: ink }),
    line(truth.ds, truth.traffic, "truth", { color: orange, dash: "dot" }),
  ];
  const { layout, axis } = look();
  const known = history.ds.length > 0;
  const top = [history.traffic, truth.traffic, fan["0.95"]].flat().reduce((most, value) => Math.max(most, value ?? 0), 0);
  const mark = { type: "line", xref: "x", yref: "paper", x0: answer.issue, x1: answer.issue, y0: 0, y1: 1, line: { color: colour("muted"), width: 1, dash: "dash" } };
  Plotly.react(
    at("chart"),
    traces,
    {
      ...layout,
      dragmode: false,
      hovermode: "x unified",
      margin: { l: 12, r: 12, t: 12, b: 12 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", itemclick: false, itemdoubleclick: false, ...(narrow.matches ? { entrywidth: 72, font: { size: 12 } } : {}) },
      shapes: known ? [mark] : [],
      xaxis: { ...axis, type: "date", title: { ...axis.title, text: "Local time" }, fixedrange: true, hoverformat: "%a %-d %b %Y, %H:%M", nticks: narrow.matches ? 4 : 8, tickangle: 0, ...(narrow.matches ? { tickformat: "%H:%M<br>%-d %b" } : {}) },
      yaxis: { ...axis, title: { ...axis.title, text: plain(`${service()}: ${perSlot()}`) }, fixedrange: true, rangemode: "tozero", tickformat: top >= 1e4 ? "~s" : ",.4~g", ...(top === 0 ? { range: [0, 1] } : {}) },
    },
    CONFIG,
  );
  const told = known ? "The dashed line is where the forecast begins." : "The site's own measurements were hidden, its neighbours' were known.";
  const unknown = truth.traffic.every((value) => value === null) ? " The truth is not known there." : "";
  const calibrated = answer.calibrated ? "" : ", not calibrated";
  at("chart-caption").textContent = `${answer.station}: bands hold 50, 80 and 90 % of the forecast. ${told}${unknown} Model ${answer.model} ${answer.version} (${answer.steps} steps, ${answer.draws} draws, seed ${answer.seed}${calibrated}).`;
}

function fillTable(history, truth, fan) {
  const levels = QUANTILES.map(String);
  const head = ["Time", "Measured", "Mean", ...levels.map((level) => `${Number(level) * 100} %`)];
  const rows = [
    ...history.ds.map((time, i) => [time.replace("T", " "), number(history.traffic[i]), ...Array(levels.length + 1).fill("")]),
    ...fan.ds.map((time, i) => [time.replace("T", " "), number(truth.traffic[i]), number(fan.mean[i]), ...levels.map((level) => number(fan[level][i]))]),
  ];
  const row = (cells, name) => {
    const made = document.createElement("tr");
    made.append(...cells.map((text, i) => Object.assign(element(i && name === "td" ? "td" : "th", text), i && name === "td" ? {} : { scope: name === "td" ? "row" : "col" })));
    return made;
  };
  const [top, body] = ["thead", "tbody"].map((name) => document.createElement(name));
  top.append(row(head, "th"));
  body.append(...rows.map((cells) => row(cells, "td")));
  at("table").replaceChildren(element("caption", perSlot()), top, body);
}

function download() {
  const { answer } = state;
  const levels = QUANTILES.map(String);
  const quoted = (value) => (value === null ? "" : /[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  const place = [answer.city, answer.station];
  const { history, truth, forecast: fan } = answer;
  const rows = [
    ["city", "station", "service", "time", "part", "measured", "mean", ...levels],
    ...history.ds.map((time, i) => [...place, history.service[i], time, "history", history.traffic[i], ...Array(levels.length + 1).fill(null)]),
    ...fan.ds.map((time, i) => [...place, fan.service[i], time, "forecast", truth.traffic[i], fan.mean[i], ...levels.map((level) => fan[level][i])]),
  ];
  const text = rows.map((cells) => cells.map(quoted).join(",")).join("\r\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([`${text}\r\n`], { type: "text/csv" }));
  link.download = `${answer.city}_${answer.station}_${answer.issue}.csv`.replace(/[^\w.-]+/g, "-");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- what the user does

function listen() {
  at("city").addEventListener("change", () => chooseCity(state.cities.find((city) => city.name === at("city").value)));
  at("service").addEventListener("change", () => {
    if (!state.places) return;
    listSites();
    showSlot(state.slot);
    if (state.answer) showAnswer();
  });
  at("play").addEventListener("click", play);
  at("map-slot").addEventListener("input", () => {
    stop();
    if (state.places) showSlot(Number(at("map-slot").value));
  });
  at("map-time").addEventListener("change", () => {
    stop();
    const slot = Math.floor((minutes(at("map-time").value) - first()) / step());
    if (state.places && slot >= 0 && slot <= lastSlot()) showSlot(slot);
    else tell("map-status", `Map time: expected a time from ${clock(first())} to ${clock(minutes(state.city.last))}.`, "error");
  });
  at("search").addEventListener("input", () => state.places && listSites());
  at("sites").addEventListener("change", () => chooseSite(state.places.stations[state.places.of.get(at("sites").value)]));
  for (const choice of document.querySelectorAll("input[name=task]")) {
    choice.addEventListener("change", () => {
      at("horizon-field").hidden = task() !== "horizon";
      at("horizon").disabled = task() !== "horizon";
      if (state.city) defaultIssue();
      forecastSoon();
    });
  }
  at("issue").addEventListener("change", () => {
    state.ownIssue = true;
    forecastSoon();
  });
  at("newest").addEventListener("click", () => {
    state.ownIssue = true;
    at("issue").value = iso(minutes(state.city.last) + step());
    forecastSoon();
  });
  for (const id of ["horizon", "model"]) {
    at(id).addEventListener("change", () => {
      if (state.city) defaultIssue();
      forecastSoon();
    });
  }
  for (const id of ["draws", "seed"]) at(id).addEventListener("change", forecastSoon);
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    forecast();
  });
  at("download").addEventListener("click", download);
  still.addEventListener("change", stop);
  for (const query of [dark, narrow]) {
    query.addEventListener("change", () => {
      if (state.places) showSlot(state.slot);
      if (state.answer) showAnswer();
    });
  }
}

async function start() {
  if (typeof Plotly === "undefined") return tell("status", "plotly.js could not be loaded from this server: install raytraffic with its dependencies.", "error");
  try {
    [state.models, state.cities] = await Promise.all([api("v1/models"), api("v1/cities")]);
  } catch (error) {
    return tell("status", error.message, "error");
  }
  at("about").textContent = `Forecasts by ${state.models.map((one) => `${one.name} ${one.version}`).join(", ")}`;
  if (!state.cities.length) {
    return tell("status", "This server has no cities: it was started without a prepared store. Start it with one:\nraytraffic serve --checkpoints NAME=FOLDER --store FOLDER");
  }
  options(at("model"), state.models.map((one) => [one.name, one.name]));
  at("model-field").hidden = state.models.length < 2;
  options(at("city"), state.cities.map((city) => [city.name, city.name]));
  at("horizon").disabled = true;
  stop();
  tell("status", "");
  at("main").hidden = false;
  listen();
  await chooseCity(state.cities[0]);
}

start();
