"""Energy model files: units, values, sources and ranges are checked, and what is wrong is named."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from snnkit.analysis.energy_models import Duration, Power, Price, list_models, load_model
from snnkit.errors import ConfigError

PRICE = {"value": 1, "unit": "pJ", "source": "Someone, 2026"}
EVENT = "precisions.int8.synaptic_event"


def own(**changes):
    model = {
        "name": "mine",
        "title": "my chip",
        "technology": "7 nm",
        "source": "Someone, 2026",
        "precisions": {"int8": {"synaptic_event": PRICE}},
        "leaves_out": ["static power"],
    }
    return model | changes


def refused(tmp_path, model, *names):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(model))
    with pytest.raises(ConfigError) as caught:
        load_model(path)
    for name in ("mine.yaml", *names):
        assert name in str(caught.value)
    assert caught.value.hint


WAYS = ("update_active", "update_inactive", "state_addition", "state_multiplication")
WRONG = {
    f"{EVENT}.unit": {"synaptic_event": PRICE | {"unit": "J"}},
    f"{EVENT}.unit: Field required": {"synaptic_event": {"value": 1, "source": "Someone, 2026"}},
    f"{EVENT}.source": {"synaptic_event": {"value": 1, "unit": "pJ"}},
    f"{EVENT}.value": {"synaptic_event": PRICE | {"value": -1}},
    f"{EVENT}.value: Input should be greater": {"synaptic_event": PRICE | {"value": 0}},
    f"{EVENT}.value: Input should be a valid number": {"synaptic_event": PRICE | {"value": "23.6 pJ"}},
    f"{EVENT}.value: Input should be a finite number": {"synaptic_event": PRICE | {"value": math.nan}},
    f"{EVENT}.joule": {"synaptic_event": PRICE | {"joule": 1}},
    "precisions.int8.hop": {"synaptic_event": PRICE, "hop": PRICE},
    "priced twice": {"synaptic_event": PRICE} | dict.fromkeys(WAYS, PRICE),
    "belong together": {"synaptic_event": PRICE, "update_active": PRICE},
    "outside its range": {"synaptic_event": PRICE | {"low": 2, "high": 3}},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_prices_are_refused_by_name(tmp_path, name):
    refused(tmp_path, own(precisions={"int8": WRONG[name]}), name)


@pytest.mark.parametrize("field", ["source", "technology", "leaves_out", "precisions", "title", "name"])
def test_nothing_may_be_missing(tmp_path, field):
    model = own()
    del model[field]
    refused(tmp_path, model, field)


@pytest.mark.parametrize("source", ["", "  ", "someone", "the paper", "table 2", "120194"])
def test_a_source_says_who_and_when(tmp_path, source):
    refused(tmp_path, own(precisions={"int8": {"synaptic_event": PRICE | {"source": source}}}), f"{EVENT}.source")


LEVEL = {"name": "SRAM", "bytes": 8, "access": PRICE}
ANYTHING = {"name": "DRAM", "access": PRICE}


@pytest.mark.parametrize(
    ("memory", "name"),
    [
        ([LEVEL], "holds anything"),
        ([ANYTHING, LEVEL], "holds anything"),
        ([LEVEL | {"bytes": 9}, LEVEL, ANYTHING], "from the smallest"),
        ([LEVEL | {"bytes": 0}, ANYTHING], "memory.0.bytes"),
        ([LEVEL, ANYTHING], "weight_bits"),
    ],
)
def test_memories_hold_more_and_more(tmp_path, memory, name):
    refused(tmp_path, own(memory=memory), name)


@pytest.mark.parametrize("text", ["a: [", "", "- 1", "name: x\n  y: z", "2026-13-45: 1", "[" * 3000])
def test_files_that_are_no_model(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_model(path)


@given(st.sampled_from([Price, Power, Duration]), st.floats(allow_nan=True, allow_infinity=True), st.data())
def test_only_plausible_values_pass(kind, value, data):
    """Whatever passes is finite, positive, inside the plausible, and exactly what was written."""
    unit = data.draw(st.sampled_from([*kind.UNITS, "J", "pj", ""]))
    least, most = kind.PLAUSIBLE
    good = unit in kind.UNITS and value > 0 and least <= value * kind.UNITS[unit] <= most
    try:
        quantity = kind(value=value, unit=unit, source="Someone, 2026")
    except ValidationError as error:
        assert not good
        assert {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]} <= {"value", "unit"}
    else:
        assert good
        assert quantity.nominal == quantity.lower == quantity.upper == value * kind.UNITS[unit]


@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3), st.permutations(["low", "value", "high"]))
def test_a_range_holds_its_value(numbers, names):
    fields = dict(zip(names, numbers, strict=True))
    ordered = fields["low"] <= fields["value"] <= fields["high"]
    try:
        price = Price(unit="pJ", source="Someone, 2026", **fields)
    except ValidationError:
        assert not ordered
    else:
        assert ordered
        assert price.lower <= price.joules <= price.upper


@pytest.mark.parametrize("name", list_models())
def test_shipped_models_load(name):
    assert load_model(name).name == name
