"""One look for every picture and page: cividis and one blue for forecasts, one orange for the truth, safe for colour-blind readers."""

from __future__ import annotations

from typing import Any

__all__ = ["ACCENT", "BANDS", "COLOUR_MAP", "FORECAST", "INK", "MUTED", "PLOT", "STYLE_SHEET"]

INK = "#24292f"
MUTED = "#7c858e"
FORECAST = "#1d5b99"
ACCENT = "#d55e00"  # Okabe and Ito's vermilion
#: Central intervals from the widest to the narrowest, with the opacity that sets them apart in grey as well.
BANDS = ((0.9, 0.16), (0.8, 0.22), (0.5, 0.34))
COLOUR_MAP = "cividis"

#: Matplotlib settings under which every picture is drawn (Any: its own type spells out the name of every setting there is).
PLOT: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so a report looks the same on every machine
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8ea",
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "text.parse_math": False,  # a user's "$" is a dollar
    "svg.hashsalt": "raytraffic",  # the same picture is the same bytes
    "savefig.facecolor": "white",
}

STYLE_SHEET = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #24292f; --muted: #5d666f; --line: #dfe3e7; --soft: #f5f7f8; --best: #1d5b99; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181c; --ink: #e3e7eb; --muted: #9aa4ae; --line: #323a42; --soft: #1d2329; --best: #8bc0f5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h1, h2, p, figcaption, caption, summary { overflow-wrap: anywhere; }
p { max-width: 48rem; margin: .5rem 0; }
p.lead { font-size: 1.1rem; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .95rem; }
a { color: var(--best); }
.scroll { overflow: auto; max-height: 80vh; width: fit-content; max-width: 100%; margin: 1rem 0;
  border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .6rem .75rem; color: var(--muted); }
th, td { padding: .3rem .75rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { position: sticky; top: 0; z-index: 2; background: var(--soft); border-bottom: 1px solid var(--line); }
tbody th[scope=row] { position: sticky; left: 0; z-index: 1; background: var(--page); font-weight: normal; }
tbody th[scope=rowgroup] { padding-top: .7rem; color: var(--muted); font-weight: 600; border-bottom: 1px solid var(--line); }
tr.ours th[scope=row], tr.ours td { background: var(--soft); }
td.best { color: var(--best); font-weight: 700; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem; margin: 1rem 0; }
.gallery.wide { grid-template-columns: minmax(0, 1fr); } .wide figure { overflow-x: auto; } .wide figure img { min-width: 48rem; }
.wide figcaption { position: sticky; left: 0; }
.beside { display: flex; flex-wrap: wrap; gap: 0 1.5rem; align-items: flex-start; }
.beside > .scroll { flex: 0 1 auto; } .beside > .gallery { flex: 1 1 20rem; grid-template-columns: minmax(0, 30rem); }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
figure img { display: block; width: 100%; height: auto; background: #fff; padding: .35rem; }
figcaption { padding: .45rem .75rem; font-size: .875rem; color: var(--muted); border-top: 1px solid var(--line); }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--best); }
@media (max-width: 40rem) {
  body { padding: 1rem .75rem 3rem; } h1 { font-size: 1.35rem; }
  th, td { padding: .3rem .28rem; } table { font-size: .8rem; } caption { padding: .5rem .28rem; }
  th:first-child { max-width: 7.5rem; white-space: normal; }
}
@media print { .scroll { max-height: none; overflow: visible; } figure { break-inside: avoid; } }
""".strip()
