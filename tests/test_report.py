"""The report: what it says equals report.json, nothing in it is loaded or run, and a browser shows it well."""

import base64
import dataclasses
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import snnkit
from snnkit import pipeline, records, reporting
from snnkit.analysis.energy import format_energy, format_range
from snnkit.analysis.report import charts, png, svg
from snnkit.analysis.report.content import Report
from snnkit.analysis.report.page import count, render
from snnkit.cli.main import run as snnkit_command
from snnkit.errors import RunFolderError
from snnkit.network import load, predictions, save
from snnkit.runs import Run
from snnkit_targets import onnxruntime
from tests import chromium
from tests.networks import integer_networks, raw_inputs

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.yaml"
SMALL = ["train.epochs=6", "teacher.epochs=6", "teacher.channels=[8,8,8]", "student.channels=[8,8,8]"]
VOID = {"meta", "link", "img", "br"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with a run without distillation in it, quantised, exported, and run on two targets."""
    run = Run(tmp_path_factory.mktemp("report") / "run")
    snnkit.distill(snnkit.load_config(EXAMPLE, SMALL), run, quiet=True)
    plain = [*SMALL, "losses.kl=0", "losses.feature=0", "train.epochs=1"]
    snnkit.distill(snnkit.load_config(EXAMPLE, plain), Run(run.path / "undistilled"), quiet=True)
    pipeline.quantize_run(run.path)
    pipeline.export_all(run.path, ["onnx"])
    assert snnkit_command(["run", str(run.path), "-t", "reference", "-t", "onnxruntime"]) == 0
    assert snnkit_command(["report", str(run.path)]) == 0
    return run.path


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


class Page(HTMLParser):
    """Checks that tags are balanced while it collects elements, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.keys: dict[str, str] = {}
        self.text = ""
        self.key: str | None = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self.key = dict(attributes).get("data-key")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " * (tag in ("td", "th"))
        self.key = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.key:
            self.keys[self.key] = self.keys.get(self.key, "") + data


def key_numbers(data: dict[str, Any]) -> dict[str, str]:
    """What the page must say about the verdict that report.json holds."""
    verdict = data["verdict"]
    low, high = verdict["energies"]
    fitting = [chip["chip"] for chip in verdict["chips"] if chip["fits"]]
    return {
        "accuracy": f"{verdict['accuracy']['accuracy']:.2f} %",
        "drop_points": f"{verdict['drop_points']:.2f} points",
        "spikes": count(verdict["spikes"]),
        "energies": f"{format_energy(low['low'])} to {format_energy(high['high'])}",
        "identical": {True: "identical", False: "different", None: "not compared"}[verdict["identical"]],
        "fits": f"fits {', '.join(fitting)}" if fitting else "does not fit",
    }


def test_the_page_says_what_report_json_holds(trained: Path) -> None:
    data = json.loads((trained / "report.json").read_text())
    page = Page((trained / "report.html").read_text())
    assert data["schema"] == 1
    assert page.keys == key_numbers(data)
    assert data["verdict"]["sentence"] in page.text
    said = " ".join(page.text.split())
    for row in data["results"]:
        low, high = row["accuracy"]["interval_95"]
        assert f"{row['accuracy']['accuracy']:.2f} % " in said
        assert f"{low:.1f} to {high:.1f} %" in said
    for layer in data["layers"]:
        assert layer["name"] in page.text
        assert count(layer["effective_acs"]) in page.text
    for node in data["quantization"]["nodes"]:
        assert f"{100 * max(map(abs, node['v']['observed'])) / node['v']['limit']:.2f} %" in page.text
    for chip in data["chips"]:
        assert f"{chip['title']}: {'fits' if chip['fits'] else 'does not fit'}" in page.text
        for violation in chip["violations"]:
            assert violation["remedy"] in page.text
    for energy in data["energies"]:
        assert energy["source"].split(":")[0].split(",")[0] in page.text
        for term in energy["terms"]:
            assert term["source"] in page.text
            assert format_range(term["low"], term["high"]) in page.text


def test_the_numbers_are_those_of_the_network(trained: Path) -> None:
    """Against the files and functions that the report does not go through."""
    data = json.loads((trained / "report.json").read_text())
    net, test = snnkit.load(trained), snnkit.load_dataset("digits").test
    trace = snnkit.run(net, test.x, "reference", record="raster")
    tested = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    results = {(row["role"], row["runs_on"]): row["accuracy"] for row in data["results"]}
    assert set(results) == {
        ("teacher", "torch, float"),
        ("plain", "torch, float"),
        ("student", "torch, float"),
        ("network", "reference"),
        ("network", "onnxruntime"),
    }
    correct = int((predictions(trace) == test.y).sum())
    assert results["network", "reference"]["correct"] == results["network", "onnxruntime"]["correct"] == correct
    assert results["teacher", "torch, float"]["correct"] == tested["teacher"]["correct"]
    assert results["student", "torch, float"]["correct"] == tested["student"]["correct"]
    assert data["verdict"]["drop_points"] == pytest.approx(100 * (tested["student"]["correct"] - correct) / 360)
    assert data["verdict"]["spikes"] == pytest.approx(trace.spikes_per_inference)
    assert [step["timesteps"] for step in data["timesteps"]] == [1, 2, 3, 4]
    layers = {layer["name"]: layer for layer in data["layers"]}
    for name, per_step in trace.spikes_per_step.items():
        neurons = trace.spikes_per_neuron[name][0].size
        assert layers[name]["rates"] == pytest.approx(list(per_step.sum(axis=1) / (360 * neurons)))
    for index, sample in enumerate(data["samples"]):
        assert sample["readouts"] == trace.readouts[index].tolist()
        for raster in sample["rasters"]:
            fired = trace.rasters[raster["node"]][:, index].reshape(4, -1)[:, :: raster["stride"]]
            assert raster["fired"] == [row.nonzero()[0].tolist() for row in fired]
    assert data["verdict"]["identical"] is True
    assert {curve["phase"] for curve in data["curves"]} == {"teacher", "student"}
    quantized = json.loads((trained / "quantization.json").read_text())
    for shown, node in zip(data["quantization"]["nodes"], quantized["nodes"], strict=True):
        assert (shown["name"], shown["overflows"], shown["v"]) == (node["name"], node["overflows"], node["v"])
    assert data["verdict"]["drop_points"] == pytest.approx(quantized["paired"]["drop"])
    assert data["verdict"]["drop_interval"] == quantized["paired"]["interval_95"]
    assert {chip["name"]: chip["fits"] for chip in data["chips"]} == {
        mapping.chip.name: mapping.fits for mapping in pipeline.check(net, ["loihi1", "loihi2"])
    }
    for chip in data["chips"]:
        assert sum(layer["cores"] for layer in chip["layers"]) == len(chip["cores"])
    assert "--target onnxruntime" in "\n".join(data["reproduce"]["commands"])


def test_spikes_between_cores_are_priced_on_the_chip_that_fits(trained: Path) -> None:
    data = json.loads((trained / "report.json").read_text())
    net, samples = load(trained / "network.safetensors"), snnkit.load_dataset("digits").test
    assert [chip["name"] for chip in data["chips"] if chip["fits"]] == ["loihi2"]
    (mapping,) = pipeline.check(net, ["loihi2"], pipeline.Samples(samples.x, samples.y, "digits"))
    assert mapping.routed is not None
    models = {energy["model"]: energy for energy in data["energies"]}
    for name in ("loihi1-davies2018", "loihi1-sanafe"):
        assert models[name]["routed_on"].startswith("Intel Loihi 2")
        assert not any("mapping" in one["name"] for one in models[name]["unknown"])
        (last,) = [e for e in data["timesteps"][-1]["energies"] if e["model"] == name]
        assert last["joules"] == models[name]["joules"]
    counts = {term["name"]: term["count"] for term in models["loihi1-davies2018"]["terms"]}
    assert counts["spike routing, within tiles"] == pytest.approx(mapping.routed.between_cores)
    assert counts["spike routing, hops between tiles"] == pytest.approx(mapping.routed.hops_east_west)
    assert models["horowitz2014-45nm"]["routed_on"] is None
    assert "go as on Intel Loihi 2" in (trained / "report.html").read_text()
    for layer in data["layers"]:
        for name in ("acs", "macs"):
            assert sum(layer[name]) == pytest.approx(layer[f"effective_{name}"])


def test_nothing_is_loaded_and_nothing_is_run(trained: Path) -> None:
    text = (trained / "report.html").read_text()
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.elements}
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            if value := attributes.get(name):
                assert value.startswith(("data:", "#")), (tag, value)
    assert not re.search(r"url\(|@import", text)


def test_everything_can_be_reached_without_seeing_it(trained: Path) -> None:
    page = Page((trained / "report.html").read_text())
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        if tag == "svg":
            assert (
                attributes.get("aria-hidden") == "true"
                or attributes.get("role") == "img"
                or "open" in attributes["class"]
            )
            assert attributes.get("role") != "img" or attributes["aria-label"]
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "a":
            assert attributes["href"][1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    assert [tag for tag, _ in page.elements if tag == "h1"] == ["h1"]


HOSTILE = "<script>document.title='bad'</script>\"'><img src=http://127.0.0.1:9/x onerror=alert(1)>{{ 7 * 7 }}\ud800"


@pytest.fixture
def hostile(folder: Path) -> Path:
    """A run whose names, classes and files try to get out of the text that they stand in."""
    net = load(folder / "network.safetensors")
    names = {node.name: f"{node.name} {HOSTILE[:-1]}" for node in net.nodes}
    nodes = tuple(
        dataclasses.replace(
            node,
            name=names[node.name],
            inputs=tuple(dataclasses.replace(edge, source=names[edge.source]) for edge in node.inputs),
        )
        for node in net.nodes
    )
    metadata = {
        **net.metadata,
        "classes": [f"{HOSTILE[:-1]} {i}" for i in range(10)],  # network files hold no half characters
        "student": HOSTILE[:-1],
        "teacher": HOSTILE[:-1],
    }
    save(dataclasses.replace(net, nodes=nodes, metadata=metadata), folder / "network.safetensors")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("options: {}", f"options: {{x: {json.dumps(HOSTILE[:-1])}}}", 1))
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**environment, "platform": HOSTILE}))
    metrics = (folder / "metrics.jsonl").read_text().replace('"cross_entropy"', json.dumps(HOSTILE[:-1]))
    (folder / "metrics.jsonl").write_text(metrics)
    reporting.report(folder, samples=20)
    return folder / "report.html"


def test_names_stay_text(hostile: Path) -> None:
    page = Page(hostile.read_text("utf-8"))
    assert "script" not in {tag for tag, _ in page.elements}
    assert not [a for _, a in page.elements if "onerror" in a or (a.get("src") or "").startswith("http")]
    assert page.text.count(HOSTILE[:-1]) > 20
    assert "49" not in [text.strip() for text in page.text.split("alert(1)>")]


def test_what_is_not_there_is_named_with_its_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (
        *("evaluation.json", "metrics.jsonl", "environment.json", "quantization.json"),
        *("report.html", "report.json"),
    ):
        (folder / name).unlink()
    shutil.rmtree(folder / "undistilled")
    assert snnkit_command(["report", str(folder), "--samples", "50", "-m", "loihi1-davies2018", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["verdict"]["drop_points"] is None
    assert data["verdict"]["identical"] is None
    assert [row["runs_on"] for row in data["results"]] == ["reference"]
    assert data["results"][0]["accuracy"]["samples"] == 50
    assert {energy["model"] for energy in data["energies"]} == {"loihi1-davies2018"}
    text = (folder / "report.html").read_text()
    for missing in data["missing"]:
        assert missing["why"] in text
        assert missing["command"] in text
    assert {"accuracy", "saliency", "training", "quantisation"} <= {missing["section"] for missing in data["missing"]}
    assert "unknown" in Page(text).text


@pytest.mark.parametrize(
    "name", ["evaluation.json", "metrics.jsonl", "environment.json", "saliency.json", "quantization.json"]
)
@pytest.mark.parametrize("damage", ["[1]\n", '{"phase": 3, "rows": 7}\n', "nonsense\n", '{"targets": [{}]}\n'])
def test_damaged_files_are_named_and_nothing_is_written(folder: Path, name: str, damage: str) -> None:
    (folder / name).write_text(damage)
    before = (folder / "report.html").stat().st_mtime_ns
    with pytest.raises(RunFolderError, match=re.escape(name)):
        reporting.report(folder, samples=5)
    assert (folder / "report.html").stat().st_mtime_ns == before


def test_the_json_makes_the_same_page(trained: Path) -> None:
    report = Report.model_validate_json((trained / "report.json").read_bytes())
    assert render(report) == (trained / "report.html").read_text("utf-8")


# --- what targets made of the network ---------------------------------------------------------------------------------


def test_results_over_more_samples_stay(folder: Path) -> None:
    run = Run(folder)
    before = records.read(run)
    assert before is not None
    assert [(one.target, one.samples) for one in before.targets] == [("reference", 360), ("onnxruntime", 360)]
    assert snnkit_command(["run", str(folder), "--samples", "10", "-t", "onnxruntime", "-t", "reference"]) == 0
    after = records.read(run)
    assert after is not None
    assert after.targets == before.targets
    assert [(one.first, one.second, one.samples) for one in after.agreements] == [
        ("reference", "onnxruntime", 360),
        ("onnxruntime", "reference", 10),
    ]


def test_another_network_has_no_results(folder: Path) -> None:
    net = load(folder / "network.safetensors")
    save(dataclasses.replace(net, timesteps=3), folder / "network.safetensors")
    assert records.read(Run(folder)) is None
    written = reporting.report(folder, samples=20)
    assert written.report.verdict.targets == ("reference",)
    assert written.report.verdict.identical is None
    assert written.report.quantization is not None  # thresholds are the same
    changed = [
        dataclasses.replace(node, v_threshold=node.v_threshold + 1) if node is net.neurons[0] else node
        for node in net.nodes
    ]
    save(dataclasses.replace(net, nodes=tuple(changed)), folder / "network.safetensors")
    assert reporting.report(folder, samples=20).report.quantization is None


def test_targets_that_differ_are_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = onnxruntime.run

    def faulty(*arguments: Any) -> Any:
        trace = honest(*arguments)
        rasters = {name: raster.copy() for name, raster in trace.rasters.items()}
        rasters["stages.1.neuron"][1, 3, 0, 0, 0] ^= True
        return dataclasses.replace(trace, rasters=rasters)

    monkeypatch.setattr(onnxruntime, "run", faulty)
    assert snnkit_command(["run", str(folder), "-t", "reference", "-t", "onnxruntime"]) == 1
    report = reporting.report(folder, samples=20).report
    assert report.verdict.identical is False
    assert "reference and onnxruntime do not agree" in report.verdict.sentence
    text = " ".join(Page((folder / "report.html").read_text()).text.split())
    assert (
        "1 spikes and the readouts of 0 of 360 samples differ; first at timestep 1, stages.1.neuron, sample 3" in text
    )
    assert Page((folder / "report.html").read_text()).keys["identical"] == "different"


# --- the parts --------------------------------------------------------------------------------------------------------


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)),
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
)
def test_pictures_are_read_by_others(grey: np.ndarray, colour: np.ndarray) -> None:
    for pixels in (grey, colour):
        with Image.open(io.BytesIO(png.encode(pixels))) as found:
            np.testing.assert_array_equal(np.asarray(found), pixels)


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (np.array([[[0.0, 1.0], [0.5, 0.2]]], np.float32), [[0, 255], [128, 51]]),
        (np.array([0.0, 0.4, 1.0], np.float32), [[0, 102, 255]]),
        (np.array([[[[0, 1]], [[0, 0]]], [[[0, 1]], [[0, 2]]]], np.uint8), [[0, 255]]),  # 2 steps, 2 polarities
        (np.zeros((2, 3), np.uint8), [[0, 0, 0]]),
        (np.array([[[1.0]], [[0.0]], [[0.2]]], np.float32), [[[255, 0, 51]]]),
    ],
)
def test_samples_as_pictures(sample: np.ndarray, expected: list[Any]) -> None:
    content = base64.b64decode(png.picture(sample).removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(content)) as found:
        np.testing.assert_array_equal(np.asarray(found), expected)


@given(st.floats(1e-14, 1e12), st.floats(1e-6, 1e6), st.booleans())
def test_scales_hold_their_values(low: float, factor: float, log: bool) -> None:
    values = [low, low * (1 + factor)]
    scale = svg.Scale.over(values, log=log)
    assert all(-1e-9 <= scale(value) <= 1 + 1e-9 for value in values)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 12
    assert ticks == sorted(ticks)
    assert all(-1e-6 <= scale(tick) <= 1 + 1e-6 for tick in ticks)


def test_a_scale_of_one_value() -> None:
    assert 0 < svg.Scale.over([0.0])(0.0) < 1
    assert 0 < svg.Scale.over([97.5])(97.5) < 1


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_neighbours_are_joined_without_loss(fired: list[bool]) -> None:
    runs = charts._runs([index for index, spike in enumerate(fired) if spike])
    drawn = [index for start, end in runs for index in range(start, end)]
    assert drawn == [index for index, spike in enumerate(fired) if spike]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(runs))


def test_text_in_drawings_is_escaped() -> None:
    drawn = charts.raster("<b>&\"'", [charts.Strip("<i>", 3, [[0, 1], []])])
    assert "<b>" not in drawn
    assert "<i>" not in drawn
    assert drawn.count("&lt;i&gt;") == 1


@pytest.mark.parametrize("strategy", ["direct", "events"])
def test_networks_of_any_kind_have_a_page(folder: Path, strategy: str) -> None:
    """Networks that no training gave: events, sums of branches, counting readouts."""
    from hypothesis import find

    net = find(integer_networks(), lambda n: n.input.encoding == strategy)
    x, y = raw_inputs(net, samples=4), np.array([0, 1, 2, 3])
    run, config = Run(folder), snnkit.load_config(EXAMPLE)
    made = reporting._gather(run, net, pipeline.Samples(x, y, "random"), ["loihi1-davies2018"], ["loihi1"])
    page = Page(render(made))
    assert made.verdict.sentence in page.text
    assert made.facts.classes == ("0", "1", "2", "3")
    assert config.name in page.text


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Chromium]:
    program = chromium.find()
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("the report must be seen by a browser here: install Debian's 'chromium'")
        pytest.skip("there is no Chromium on this machine (Debian: apt-get install chromium)")
    with chromium.Chromium(program) as running:
        yield running


def test_the_browser_would_tell(browser: chromium.Chromium, tmp_path: Path) -> None:
    """What the next tests do not want to see is seen."""
    for body, expected in {
        "<img src='http://127.0.0.1:9/picture.png'>": "request: http://127.0.0.1:9/picture.png",
        "<script>console.error('wrong')</script>": "wrong",
        "<script>undefined.nothing</script>": "TypeError",
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\"><img src='data:,'>": "violates",
    }.items():
        (tmp_path / "page.html").write_text(
            f"<!DOCTYPE html><meta name='viewport' content='width=device-width'>{body}<p style='width:2000px'>wide</p>"
        )
        browser.show(tmp_path / "page.html", width=390)
        assert expected in "\n".join(browser.problems())
        assert "Policy" in body or overflow(browser) > 0


def overflow(browser: chromium.Chromium) -> int:
    """Pixels by which the page is wider than the window; a phone would zoom out."""
    wide = browser.evaluate("document.scrollingElement.scrollWidth")
    assert isinstance(wide, int)
    return wide - browser.width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(browser: chromium.Chromium, trained: Path, scheme: str, width: int) -> None:
    browser.show(trained / "report.html", width=width, scheme=scheme)
    assert browser.problems() == []
    assert overflow(browser) <= 0
    keys = "Object.fromEntries([...document.querySelectorAll('[data-key]')].map(e => [e.dataset.key, e.innerText]))"
    data = json.loads((trained / "report.json").read_text())
    assert browser.evaluate(keys) == key_numbers(data)
    shown = browser.evaluate("document.body.innerText")
    assert data["verdict"]["sentence"] in shown
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert browser.evaluate(
        "[...document.querySelectorAll('svg.chart')].every(s => s.getBoundingClientRect().height > 40)"
    )
    brightness = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (min(brightness) > 200) == (scheme == "light")
    assert len(browser.picture()) > 10_000


def test_the_page_on_paper(browser: chromium.Chromium, trained: Path) -> None:
    """Printed on A4 in dark mode: on white, and what is folded on the screen is open."""
    browser.show(trained / "report.html", width=718, scheme="dark", media="print")
    assert browser.problems() == []
    assert overflow(browser) <= 0
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tables = "[...document.querySelectorAll('details table')].map(t => t.getBoundingClientRect().height)"
    heights = browser.evaluate(tables)
    assert heights
    assert min(heights) > 40


def test_a_hostile_page_in_a_browser(browser: chromium.Chromium, hostile: Path) -> None:
    browser.show(hostile, width=390)
    assert browser.problems() == []
    assert browser.evaluate("document.title") != "bad"
    assert overflow(browser) <= 0


def test_colours_can_be_told_from_their_background() -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for marks, in light, dark and print."""
    style = (resources.files("snnkit.analysis.report") / "page.css").read_text("utf-8")

    def luminance(colour: str) -> float:
        digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    themes = [dict(re.findall(r"--([\w]+): #(\w+);", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(themes) == 3
    for theme in themes:
        for name, colour in theme.items():
            least = {"ink": 7.0, "soft": 4.5, "good": 4.5, "bad": 4.5, "c0": 4.5}.get(name, 3.0)
            if name in ("paper", "panel", "line", "track"):
                continue
            for behind in ("paper", "panel"):
                bright, dark = sorted([luminance(colour), luminance(theme[behind])], reverse=True)
                assert (bright + 0.05) / (dark + 0.05) >= least, (name, colour, behind)
