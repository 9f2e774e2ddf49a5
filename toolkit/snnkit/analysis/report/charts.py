"""Charts as inline SVG, with their own axes and, for those who cannot see them, a title that says what they show.

Their ``viewBox`` is WIDTH units wide, about a phone, so that text keeps its size.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from snnkit.analysis.report.svg import Scale, tag

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 36


@dataclass(frozen=True)
class Series:
    """A line through (x, y); ``band`` holds low and high at each x, ``marked`` draws the points."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    band: Sequence[tuple[float, float]] = ()
    marked: bool = False


def figure(title: str, *children: str, height: float = HEIGHT) -> Markup:
    """A drawing of WIDTH x ``height`` units with its title."""
    name = tag("title", title)
    return tag(
        "svg", name, *children, class_="chart", viewBox=f"0 0 {WIDTH} {height:.0f}", role="img", aria_label=title
    )


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    write: Callable[[float], str],
    log: bool = False,
    whole: bool = False,
) -> Markup:
    """Lines over a shared x; ``write`` labels the y axis, ``whole`` puts a tick at every x (a few timesteps)."""
    xs = sorted({x for one in series for x, _ in one.points})
    ys = [y for one in series for _, y in one.points] + [y for one in series for pair in one.band for y in pair]
    across = Scale(xs[0], xs[-1]) if xs[0] < xs[-1] else Scale(xs[0] - 1, xs[0] + 1)
    up = Scale.over(ys, log=log)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + across(x) * (WIDTH - LEFT - RIGHT),
            TOP + (1 - up(y)) * (HEIGHT - TOP - BOTTOM),
        )

    parts: list[Markup] = []
    for value in up.ticks(4):
        _, y = place(xs[0], value)
        parts.append(tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(tag("text", write(value), x=LEFT - 6, y=y + 4, text_anchor="end"))
    for value in xs if whole else across.ticks(5):
        x, _ = place(value, ys[0])
        parts.append(tag("text", f"{value:g}", x=x, y=HEIGHT - BOTTOM + 15, text_anchor="middle"))
    parts.append(tag("line", class_="base", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM))
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(tag("text", x_label, class_="label", x=middle, y=HEIGHT - 4, text_anchor="middle"))
    for one in series:
        if one.band:
            lower = [place(x, low) for (x, _), (low, _) in zip(one.points, one.band, strict=True)]
            upper = [place(x, high) for (x, _), (_, high) in zip(one.points, one.band, strict=True)]
            parts.append(tag("polygon", class_=f"c{one.colour} band", points=_points([*lower, *reversed(upper)])))
    for one in series:
        found = [place(x, y) for x, y in one.points]
        parts.append(tag("polyline", tag("title", one.name), class_=f"s{one.colour} outline", points=_points(found)))
        if one.marked:
            parts += [tag("circle", class_=f"c{one.colour} ringed", cx=x, cy=y, r=4) for x, y in found]
    return figure(title, *parts)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


@dataclass(frozen=True)
class Strip:
    """The spikes of a layer for one sample: for each timestep the indices, below ``width``, of those that fired."""

    caption: str
    width: int
    fired: Sequence[Sequence[int]]


def raster(title: str, strips: Sequence[Strip]) -> Markup:
    """A strip a layer, a row a timestep from the top, a column a neuron."""
    row, gap, left = 8, 24, 14
    parts, y = [], 0.0
    for strip in strips:
        unit = (WIDTH - left) / strip.width
        parts.append(tag("text", strip.caption, x=0, y=y + 13))
        y += 19
        for t, indices in enumerate(strip.fired):
            parts.append(tag("text", str(t + 1), class_="tiny", x=0, y=y + row * (t + 1) - 1))
            parts.append(tag("rect", class_="track", x=left, y=y + row * t, width=WIDTH - left, height=row - 1))
            marks = ""
            for start, end in _runs(indices):
                x, wide = left + start * unit, (end - start) * unit - min(0.3, unit / 4)
                marks += f"M{x:.1f} {y + row * t:.0f}h{wide:.1f}v{row - 1}h-{wide:.1f}z"
            if marks:
                parts.append(tag("path", class_="c0", d=marks))
        y += row * len(strip.fired) + gap - 19
    return figure(title, *parts, height=y)


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours joined: (first, one past the last)."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


@dataclass(frozen=True)
class Square:
    """A core that is used: the tile that it is in, its place there, its text, its share of use and a tooltip."""

    row: int
    column: int
    place: int
    text: str
    use: float
    tooltip: str


def mesh(title: str, rows: int, columns: int, per_tile: int, used: Sequence[Square]) -> Markup:
    """A chip: tiles of cores, the used ones the darker the fuller; above a use of 1 in the colour of a fault."""
    across = math.ceil(math.sqrt(per_tile))
    gap, tile = 4.0, min(48.0, WIDTH / columns)
    core = (tile - gap) / across
    parts = []
    for row, column, place in itertools.product(range(rows), range(columns), range(per_tile)):
        x, y = column * tile + place % across * core, row * tile + place // across * core
        parts.append(tag("rect", class_="track", x=x, y=y, width=core - 1, height=core - 1, rx=1.5))
    for one in used:
        x, y = one.column * tile + one.place % across * core, one.row * tile + one.place // across * core
        colour, opacity = ("c6", 1.0) if one.use > 1 else ("c0", 0.25 + 0.75 * one.use)
        size = {"x": x, "y": y, "width": core - 1, "height": core - 1, "rx": 1.5}
        name = tag("title", one.tooltip)
        parts.append(tag("rect", name, class_=colour, **size, fill_opacity=opacity))
        parts.append(tag("rect", class_=f"s{colour[1]} frame", **size))
        if core > 12:
            middle = {"x": x + (core - 1) / 2, "y": y + (core - 1) / 2 + 4}
            parts.append(tag("text", one.text, class_="on" if opacity > 0.6 else "ink", **middle, text_anchor="middle"))
    return figure(title, *parts, height=rows * tile)
