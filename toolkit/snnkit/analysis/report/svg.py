"""SVG elements, scales, and marks for table cells: bars, stacks, whiskers.

Colours are classes, ``c0`` to ``c7`` to fill and ``s0`` to ``s7`` to stroke, so that the page's style decides, light
or dark. What stands in a cell is placed in percent, as wide as its cell; the number beside it says the same in text.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS = 8


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element; ``class_`` and ``stroke_width`` become ``class`` and ``stroke-width``, floats get two decimals."""
    written = [
        Markup('{}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value))
        for key, value in attributes.items()
        if value is not None
    ]
    return Markup("<{0}>{1}</{2}>").format(
        Markup(" ").join([name, *written]), Markup("").join(escape(child) for child in children), name
    )


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


@dataclass(frozen=True)
class Scale:
    """From a value to 0..1, linear or logarithmic; equal ends are widened."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], *, log: bool = False) -> "Scale":
        """The decades around positive values, or their span with a margin of a tenth."""
        found = list(values)
        low, high = min(found), max(found)
        if log:
            bottom, top = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
            return cls(10.0**bottom, 10.0 ** max(top, bottom + 1), log=True)
        margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low - margin, high + margin)

    def __call__(self, value: float) -> float:
        if self.log:
            return math.log10(value / self.low) / math.log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside: decades, or steps of 1, 2 or 5 times a power of ten."""
        if self.log:
            exponents = range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)
            return [10.0**e for e in list(exponents)[:: math.ceil(len(exponents) / (wanted + 1))]]
        step = _step((self.high - self.low) / wanted)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _cell(*children: str, class_: str = "cell") -> Markup:
    """Hidden from screen readers: the cell beside it holds the number."""
    return tag("svg", *children, class_=class_, aria_hidden="true", focusable="false")


def _percent(value: float) -> str:
    return f"{_short(100 * min(1.0, max(0.0, value)))}%"


def bar(share: float, colour: int = 0) -> Markup:
    """A bar of ``share`` 0..1 of the cell, on a track."""
    track = tag("rect", class_="track", x=0, y=4, width="100%", height=10, rx=2)
    return _cell(track, tag("rect", class_=f"c{colour}", x=0, y=4, width=_percent(share), height=10, rx=2))


def stack(shares: Iterable[tuple[float, int | None]]) -> Markup:
    """Bars of (share, colour) one after the other; shares add up to 1, None is the empty track."""
    start, parts = 0.0, []
    for share, colour in shares:
        kind = "track" if colour is None else f"c{colour} part"
        parts.append(tag("rect", class_=kind, x=_percent(start), y=4, width=_percent(share), height=10))
        start += share
    return _cell(*parts)


def columns(values: Sequence[float], limit: float) -> Markup:
    """A thin column a value, all of them against ``limit``."""
    parts = []
    for index, value in enumerate(values):
        height = 16 * min(1.0, value / limit) if limit else 0.0
        place = {"x": _percent((index + 0.1) / len(values)), "width": _percent(0.8 / len(values))}
        parts.append(tag("rect", class_="track", **place, y=1, height=16))
        parts.append(tag("rect", class_="c0", **place, y=17 - height, height=height))
    return _cell(*parts, class_="cell columns")


def whisker(low: float, middle: float, high: float, scale: Scale, colour: int = 0) -> Markup:
    """An interval and the point in it."""
    ends = (_percent(scale(low)), _percent(scale(high)))
    line = tag("line", class_=f"s{colour} thick", x1=ends[0], x2=ends[1], y1=9, y2=9)
    return _cell(_grid(scale), line, tag("circle", class_=f"c{colour} ringed", cx=_percent(scale(middle)), cy=9, r=4.5))


def reach(low: float, high: float, scale: Scale, colour: int = 0, *, bound: str | None = None) -> Markup:
    """A range as a bar, (next to) a single value as a dot; an arrow where it is only a lower or an upper bound."""
    start, end = scale(low), scale(high)
    if end - start > 0.01:
        marks = [tag("rect", class_=f"c{colour}", x=_percent(start), y=4, width=_percent(end - start), height=10, rx=2)]
    else:
        marks = [tag("circle", class_=f"c{colour} ringed", cx=_percent(start), cy=9, r=5)]
    if bound:
        up = bound == "at least"
        arrow = "M7 9h11m-4-4 4 4-4 4" if up else "M-7 9h-11m4-4-4 4 4 4"
        marks.append(
            tag(
                "svg",
                tag("path", class_=f"s{colour} outline", d=arrow),
                x=_percent(end if up else start),
                class_="open",
            )
        )
    return _cell(_grid(scale), *marks)


def _grid(scale: Scale) -> Markup:
    lines = [
        tag("line", class_="grid", x1=_percent(scale(t)), x2=_percent(scale(t)), y1=0, y2=18) for t in scale.ticks()
    ]
    return Markup("").join(lines)


def axis(scale: Scale, labels: Sequence[tuple[float, str]]) -> Markup:
    """The tick labels of cells that share a scale, for the head of their column."""
    texts = []
    for value, label in labels:
        place = scale(value)
        anchor = "start" if place < 0.08 else "end" if place > 0.92 else "middle"
        texts.append(tag("text", label, x=_percent(place), y=12, text_anchor=anchor))
    return tag("svg", *texts, class_="cell axis", aria_hidden="true", focusable="false")
