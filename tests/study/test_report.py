"""The report in a real browser: nothing overflows, nothing is fetched, everything has a name."""

import dataclasses
import pathlib
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

from pit_jax.study import curves, figures, plots, report
from pit_jax.study.compare import compare

from .fake_runs import fake_run, fake_sweep

# Chromium asks for nothing by itself with these.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
ODD = 'far <script>alert("x")</script> & near'
STUDY = """How far must a pixel see?

    pit-jax sweep experiments/study.py:tiny --workdir runs/study

Question: is a `model.window` <b>a help</b>?

    point      published
    radius 2   82.8 %
"""


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Five settings of three seeds, one with an odd name; pictures, published numbers."""
    path = tmp_path_factory.mktemp("study")
    points = {}
    for place, radius in enumerate((0.0, 1.0, 2.0, 3.0, 4.0)):
        label = ODD if radius == 4 else f"radius {place}"
        for seed in range(3):
            name = f"r{place}s{seed}"
            value = 0.9 - 0.3 * np.exp(-radius) + 0.01 * seed
            run = fake_run(path / name, value, seed, model__window=(radius,), model__pool="mean")
            points[f"{label}, seed {seed}"] = name
    run.write_picture(40, "position_similarity", np.full((8, 8, 3), 90, np.uint8))
    run.write_picture(20, "position_similarity", np.zeros((3, 3, 3), np.uint8))
    run.write_picture(40, "large", np.full((1800, 900, 3), 90, np.uint8))
    run.write("pictures/broken-40.png", b"no picture")
    published = [
        {"label": "radius 2", "metric": "eval/accuracy", "value": 0.828, "note": "Table 5"},
        {"label": "ViT-B <&>", "metric": "eval/accuracy", "value": 0.576, "note": "T = 25 000"},
    ]
    fake_sweep(path, points, STUDY, published)
    return compare([path])


@pytest.fixture(scope="module")
def html(comparison):
    return report.to_html(comparison)


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    found = found or shutil.which("google-chrome")
    with playwright.sync_playwright() as started:
        own = started.chromium.executable_path
        if not found and not pathlib.Path(own).exists():
            pytest.skip("there is no Chromium")
        launched = started.chromium.launch(executable_path=found or own, args=QUIET)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def file(html, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html)
    return path


def test_it_says_question_numbers_and_how_it_was_made(html):
    for text in (
        "<h1>How far must a pixel see?</h1>",
        "<p>Is a <code>model.window</code> &lt;b&gt;a help&lt;/b&gt;?</p>",
        "pit-jax sweep experiments/study.py:tiny --workdir runs/study",
        'aria-label="Table of the study">point      published',
        "aaaaaaaaaa",
        "jax 0.10.2",
        "far &lt;script&gt;",
        "ViT-B &lt;&amp;&gt;",
        "T = 25 000",
        "Left out: broken-40.png of far &lt;script&gt;",
        "No p-values below 6 seeds",
    ):
        assert text in html, text
    assert "<script" not in html


def test_a_dose_is_drawn_where_another_field_differs_too(tmp_path):
    """Along the field that most settings differ by alone; the others stay out of it."""
    for place in range(4):
        fake_run(tmp_path / f"r{place}", 0.9, model__window=(float(place),), model__pool="mean")
    fake_run(tmp_path / "all", 0.7, model__pool="mean")
    first = {"model__window": (1.0,), "model__window_layers": 1}
    fake_run(tmp_path / "first", 0.8, model__pool="mean", **first)
    found = figures.figures(compare([tmp_path]), figures.Table("", [], []))
    (along,) = [figure for figure in found if "along" in figure.title]
    assert along.title == "eval/accuracy along model.window"
    assert "At model.window_layers=all." in along.caption
    labels = re.findall(r">(none|[0-3])</text>", along.wide)
    assert labels == ["0", "1", "2", "3", "none"]  # in the order of radii, without a limit last


def test_two_seeds_have_no_interval_in_the_caption(tmp_path):
    for seed in range(2):
        fake_run(tmp_path / f"s{seed}", 0.9, seed)
    assert "half of its 95 % interval" not in report.to_html(compare([tmp_path]))


def test_measured_and_published_are_told_apart(html):
    (cell,) = re.findall(r'<td class="elsewhere">(8[^<]*)</td>', html.split("every seed")[0])
    assert cell == "82.80"
    assert 'class="elsewhere">published ◇</th>' in html
    assert "Hollow diamond ◇: published, not measured here." in html
    assert html.count('class="published"') >= 4  # two numbers, in both widths


def test_pictures_are_the_newest_and_not_too_large(html):
    found = re.findall(r'<img src="data:image/png;base64,[^"]+" width="(\d+)" height="(\d+)"', html)
    assert sorted(found) == [("700", "1400"), ("8", "8")]
    assert f'alt="position similarity of {ODD.split(" ")[0]}' in html


def test_plots_are_well_formed_and_draw_every_value():
    rows = [plots.Row('a "<&', [1.0, 2.0], 1.5, (1.2, 1.8), [1.7]), plots.Row("b")]
    svg = ElementTree.fromstring(plots.dots(rows, "x", "title", "alt", plots.NARROW))
    kinds = [element.get("class", "").split(" ")[0] for element in svg.iter()]
    assert (kinds.count("seed"), kinds.count("mean"), kinds.count("published")) == (2, 1, 1)
    at = {e.get("class").split()[0]: float(e.get("cx")) for e in svg.iter() if e.get("cx")}
    assert svg.find("title").text == "title"
    assert [t.text for t in svg.iter("text") if t.get("class") == "ink"] == ['a "<&', "b"]
    low, high = (float(c.get("cx")) for c in svg.iter("circle") if "seed" in c.get("class"))
    assert at["mean"] == pytest.approx((low + high) / 2, abs=0.1)


def test_the_key_plot_alone_brings_its_own_colours(comparison):
    svg = ElementTree.fromstring(report.to_svg(comparison))
    space = "{http://www.w3.org/2000/svg}"
    assert [child.tag for child in svg][:4] == [
        f"{space}{tag}" for tag in ("title", "desc", "style", "rect")
    ]
    style = svg.find(f"{space}style").text
    used = {name for e in svg.iter() for name in e.get("class", "").split()}
    assert used
    assert all(f".{name} {{" in style for name in used)
    assert "along model.window" in svg.find(f"{space}title").text


@pytest.mark.parametrize(
    "rows",
    [
        [plots.Row("one", [0.5], 0.5)],
        [plots.Row("equal", [0.5, 0.5], 0.5, (0.5, 0.5))],
        [plots.Row("zero", [0.0, 0.0], 0.0, (0.0, 0.0))],
        [plots.Row("wide", [0.5, 0.51], 0.505, (-1e3, 1e3))],
        [plots.Row("tiny", [1e-9, 2e-9], 1.5e-9, (0, 3e-9))],
        [plots.Row("none")],
    ],
)
def test_odd_values_are_drawn_inside_the_plot(rows):
    for draw in (
        plots.dots(rows, "x", "t", "a", plots.NARROW, zero=True),
        plots.dose(rows, "x", "y", "t", "a", plots.NARROW),
    ):
        svg = ElementTree.fromstring(draw)
        width = float(svg.get("width"))
        for element in svg.iter():
            for name in ("x", "x1", "x2", "cx"):
                assert 0 <= float(element.get(name, 0)) <= width, element.attrib


def test_curves_are_means_at_the_steps_all_seeds_have(comparison):
    (curve, *_), along = curves.of(comparison, "train/loss")
    runs = comparison.entries[0].group.runs
    losses = [[row["train/loss"] for row in run.rows] for run in runs]
    assert along == "step"
    assert list(curve.steps) == [10, 20, 30, 40]
    np.testing.assert_allclose(curve.mean, np.mean(losses, 0))
    np.testing.assert_allclose(curve.high, np.max(losses, 0))
    cut = dataclasses.replace(runs[0], rows=runs[0].rows[::2])
    group = dataclasses.replace(comparison.entries[0].group, runs=[cut, *runs[1:]])
    entry = dataclasses.replace(comparison.entries[0], group=group)
    fewer = dataclasses.replace(comparison, entries=[entry])
    assert list(curves.of(fewer, "train/loss")[0][0].steps) == [10, 30]


def test_a_run_alone_has_a_report(tmp_path):
    fake_run(tmp_path / "a", 0.5, steps=1)
    (tmp_path / "a" / "env.json").unlink()
    (tmp_path / "a" / "metrics.jsonl").unlink()
    assert "One seed each" in report.to_html(compare([tmp_path / "a"]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_in_a_browser(chromium, file, width, scheme):
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.evaluate(OUTSIDE) == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    assert complaints == []
    assert page.evaluate("[...document.images].every(i => i.alt && i.complete && i.naturalWidth)")
    names = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.ariaLabel || '')")
    assert len(names) >= 10
    assert all(names)
    assert page.evaluate("document.querySelectorAll('h1, main, header, footer').length") == 4
    assert page.evaluate("[...document.querySelectorAll('th')].every(h => h.scope)")
    assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.caption)")
    shown = page.evaluate("[...document.querySelectorAll('svg')].filter(s => s.checkVisibility())")
    assert len(shown) == len(names) / 2  # one of the two widths
    assert page.evaluate(FAINT) == []
    page.close()


@pytest.mark.parametrize("values", [(0.001234, 0.001239), (1e5, 9e5), (0.5, 1.5)])
def test_the_label_of_the_upright_axis_stands_clear_of_its_numbers(values):
    rows = [plots.Row(str(value), mean=value) for value in values]
    curve = plots.Curve("a", [1, 2], values, values, values)
    for drawn in (
        plots.dose(rows, "axis", "along", "t", "a", plots.NARROW),
        plots.curves([curve], "axis", "along", "t", "a", plots.NARROW),
    ):
        texts = list(ElementTree.fromstring(drawn).iter("text"))
        (label,) = [e for e in texts if e.get("transform")]
        ticks = [e for e in texts if e.get("text-anchor") == "end"]
        starts = [float(e.get("x")) - plots._width(e.text) for e in ticks]
        assert min(starts) > float(label.get("x")) + 5  # half of a line of 12 pixels


def test_a_table_too_wide_for_paper_is_printed_in_parts(chromium, tmp_path):
    """Every cell lies on the sheet, whichever columns a study has."""
    for place in range(2):
        for seed in range(14):
            name = f"r{place}s{seed}"
            fake_run(tmp_path / name, 0.5 + 0.01 * seed, seed, model__depth=place + 1)
    file = tmp_path / "report.html"
    file.write_text(report.to_html(compare([tmp_path])))
    page = chromium.new_page(viewport={"width": 680, "height": 900})
    page.goto(file.as_uri())
    page.emulate_media(media="print")
    cells = "[...document.querySelectorAll('th, td')].filter(e => e.checkVisibility())"
    assert page.evaluate(f"{cells}.every(e => e.getBoundingClientRect().right <= innerWidth)")
    heads = page.evaluate(f"{cells}.map(e => e.textContent)")
    assert {f"seed {seed}" for seed in range(14)} <= set(heads)
    page.close()


def test_it_prints(chromium, file):
    page = chromium.new_page()
    page.goto(file.as_uri())
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 900})  # of A4 without its margins
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert len(page.pdf(format="A4").split(b"/Type /Page\n")) > 2
    page.close()


# Text outside the window, and outside of what scrolls by itself.
OUTSIDE = """
[...document.querySelectorAll('h1, h2, h3, p, li, figure, figcaption, svg, img, dd, pre')]
  .filter(e => e.checkVisibility() && !e.parentElement.closest('.scroll, pre'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 80))
"""

# Text whose contrast to what is behind it is below 4.5 (WCAG 2.2, 1.4.3).
FAINT = """
(() => {
  const channels = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = e => {
    for (let at = e; at; at = at.parentElement) {
      const c = channels(getComputedStyle(at).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const faint = [];
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.checkVisibility()) continue;
    const style = getComputedStyle(e);
    const front = channels(e.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(front), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(walker.currentNode.data.slice(0, 40));
  }
  return faint;
})()
"""
