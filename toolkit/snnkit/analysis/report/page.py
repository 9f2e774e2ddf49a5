"""The page: one HTML file from a report's content, with its style and drawings inside and nothing else to load."""

import functools
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from snnkit.analysis.energy import format_energy, format_range
from snnkit.analysis.report.content import Report
from snnkit.analysis.report.figures import Figures


def render(report: Report) -> str:
    """The page of a report; every text is escaped."""
    style = Markup(_resource("page.css"))  # noqa: S704 - our own file
    return _environment().get_template("page.html.j2").render(report=report, figures=Figures(report), style=style)


def _resource(name: str) -> str:
    return (resources.files("snnkit.analysis.report") / name).read_text("utf-8")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_resource),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "count": count,
        "decimals": decimals,
        "energy": format_energy,
        "percent": percent,
        "range": format_range,
    }
    return environment


def count(value: float) -> str:
    """A count with thousands separators; small means keep a decimal."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.1f}"


def decimals(value: float, digits: int = 2) -> str:
    """So many digits behind the point."""
    return f"{value:.{digits}f}"


def percent(rate: float) -> str:
    """A rate 0..1 in percent."""
    return f"{100 * rate:.2f} %"
