"""The page holds every finished number, says what is missing, shows the very pixels, and needs nothing from outside."""

import base64
import io
import json
import re
import shutil
import warnings
from contextlib import suppress
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from iec.errors import ConfigError, MetricError, NonFiniteError, StoreError
from iec.io.images import grid
from iec.io.resources import experiments
from iec.metrics.frechet import FewSamplesWarning
from iec.metrics.interval import Interval
from iec.report.__main__ import main, tables
from iec.report.pictures import GAP, LARGEST_SIDE, _smaller, plots_of
from iec.report.reading import to_html
from iec.runs import runner
from iec.runs.failures import failure_recorded
from iec.runs.runner import finished_result, run_cell
from iec.tables.experiment import Experiment
from iec.tables.rows import PSNR, build_rows
from iec.tables.table import table_of
from tests.report.browser import WIDTH, answer, needs_browser

SPEC = """
title: 'a <b>tiny</b> & "quoted" table'
source: a paper, Table 7
reference: base
scales:
  small:
    overrides: [num_images=6, batch_size=4, trace_images=2, metrics.bootstrap=5, device=cpu]
    replace: {model=ldm_imagenet: null}
  paper: {overrides: []}
common: [sampler.steps=2]
rows:
  base: [iec=none]
  base + IEC: [iec=all_steps]
  a < b & "c": [iec=none, sampler.steps=4]
  other seed: [iec=none, seed=9]
  elsewhere: [model=ldm_imagenet]
published:
  base: {FID: [4.19, known]}
  elsewhere: {FID: [3.5, review]}
"""
FINISHED = ("base", "base + IEC", 'a < b & "c"')
READING = """IEC **raises** the <score> & `a*b`.

* one
  line
* two **bold** marks
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An experiment with three finished rows, a reading and an analysis; and one that cannot be read."""
    folder = tmp_path_factory.mktemp("project") / "experiments"
    (folder / "results" / "tiny").mkdir(parents=True)
    (folder / "results" / "analysis").mkdir()
    (folder / "tiny.yaml").write_text(SPEC)
    (folder / "broken.yaml").write_text("only text")
    (folder / "results" / "tiny" / "reading.md").write_text(READING)
    Image.new("RGB", (20, 10)).save(folder / "results" / "analysis" / "errors-x.png")
    values = {"analysis": "errors", "label": "<X>", "date": "2026-01-02", "machine": "a & b"}
    (folder / "results" / "analysis" / "errors-x.json").write_text(json.dumps(values))
    cells = read(folder).cells()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        for label in FINISHED:
            run_cell(cells[label])
    return folder


def read(folder):
    return Experiment.read(folder / "tiny.yaml", [f"paths.output={folder.parent / 'out'}"], "small")


def rows_of(folder):
    experiment = read(folder)
    results = {label: result for label, cell in experiment.cells().items() if (result := finished_result(cell)) is not None}
    return build_rows(results, experiment.references), experiment


@pytest.fixture(scope="module")
def html(folder):
    return report(folder, "tiny.yaml", "broken.yaml")


def report(folder, *files):
    out = folder.parent / "out"
    main([*(str(folder / name) for name in files), "--scale", "small", f"paths.output={out}"])
    return (out / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """All tags as (tag, attributes), and the text of the page: outside of script and style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += f"{data} "

    def images(self):
        return {values["alt"]: values["src"] for tag, values in self.tags if tag == "img"}


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_nothing_is_asked_for_from_outside(html):
    page = Page(html)
    ids = {values["id"] for _, values in page.tags if "id" in values}
    for tag, values in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "poster", "action", "data", "background", "style"):
            if name in values:
                value = values[name]
                assert value.startswith("data:image/png;base64,") or (value[0] == "#" and value[1:] in ids), (tag, name, value[:80])
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\s*\(|https?:|WebSocket|sendBeacon", html)
    assert "default-src 'none'" in html


def explorer_of(html):
    return json.loads(re.search(r'<script type="application/json" id="entries">(.*?)</script>', html, re.DOTALL)[1])


def test_the_explorer_has_every_finished_row_once_with_its_numbers(folder, html):
    shutil.copy(folder / "tiny.yaml", folder / "twin.yaml")
    try:
        twins = explorer_of(report(folder, "tiny.yaml", "twin.yaml"))["entries"]
    finally:
        (folder / "twin.yaml").unlink()
    data, (rows, experiment) = explorer_of(html), rows_of(folder)
    places = [entry.pop("places") for entry in twins]
    assert [[place["section"] for place in row] for row in places] == [["tiny", "twin"]] * 3
    assert twins == [{key: value for key, value in entry.items() if key != "places"} for entry in data["entries"]]
    for row, entry, line in zip(rows, data["entries"], (1, 2, 3), strict=True):
        manifest, known = row.result.manifest, dict(zip(data["costs"], entry["costs"], strict=True))
        assert entry["places"] == [{"section": "tiny", "label": row.label, "line": line}]
        assert entry["cell"] == row.result.cell.slug and entry["command"] == experiment.command(row.label)
        assert known["measured seconds an image"] == manifest.seconds_per_image and not entry["simulated"]
        assert known["network calls an image"] == manifest.calls_per_image["total"]
        assert known["multiply-adds an image (G)"] == pytest.approx(row.image_cost.macs / 1e9)
        scores = {data["axes"][int(k)]["label"].partition(": ")[0]: ends for k, ends in entry["scores"].items()}
        assert scores == {name: list(score) for name, score in row.scores.items()}
    values = [[facet["values"][k] for facet, k in zip(data["facets"], entry["facets"], strict=True)] for entry in data["entries"]]
    model = "ddim_cifar_small"
    assert values == [
        [model, "full precision", correction, steps] for correction, steps in [("none", "2"), ("IEC", "2"), ("none", "4")]
    ]
    assert [entry["base"] for entry in data["entries"]] == [None, 0, None] and data["scopes"] == [{"data": "cifar10_train", "n": 6}]
    assert html.count(Page(html).images()["6 samples of base"]) == 1


def test_every_finished_number_and_its_provenance_is_there(folder, html):
    rows, experiment = rows_of(folder)
    text = Page(html).text
    header, body = table_of(rows, experiment)
    assert [row.label for row in rows] == list(FINISHED) and len(body) == 4
    for cell in [*header, *(cell for line in body for cell in line)]:
        assert cell in text, cell
    for row in rows:
        facts = [row.result.cell.slug, row.result.manifest.hash, row.result.record.reference_hash]
        facts += [value for record in row.result.records for value in (record.extractor_hash, record.reference_hash)]
        facts += [experiment.command(row.label), *row.result.manifest.machines]
        assert all(fact in text for fact in facts)
    assert "4.19 (k)" in text and "k: read in the primary source" in text and "EfficientNet-Lite0, not of Inception" in text
    columns = [name for name in re.findall(r'<th scope="col">(.*?)</th>', html) if name]
    assert columns[:3] == ["FID, published", "FID (EffNet-Lite0)", "FID (EffNet-Lite0 head)"]  # beside each other


def test_real_images_are_the_last_line_of_the_table(folder, monkeypatch):
    monkeypatch.setattr(runner, "floor", lambda reference, protocol, score, n: 1.5 if score == "fid" else None)
    html = report(folder, "tiny.yaml")
    (line,) = re.findall(r'<tr class="floor">(.*?)</tr>', html)
    cells = re.findall(r"<t[hd].*?>(.*?)</t[hd]>", line)
    assert cells[:4] == ["real images (CIFAR-10 test)", "", "1.500", "1.500"] and "6" in cells
    assert "3 of 5 rows" in Page(html).text


def test_what_is_missing_is_said_with_its_command_and_breaks_nothing(folder, html):
    text, command = Page(html).text, read(folder).command("other seed")
    assert "other seed not there: nothing yet" in text and f"Compute it {command}" in text
    assert (
        "elsewhere not there: not at this scale" in text
        and "python -m iec.tables experiments/tiny.yaml --run --scale paper" in text
    )
    assert "Not assembled:" in text and "broken.yaml is not an experiment file" in text  # and the other section is there
    assert "3 of 5 rows" in text
    assert not list((folder.parent / "out").glob("*seed9*"))


def test_a_failed_row_says_why(folder):
    cell = read(folder).cells()["other seed"]
    with suppress(NonFiniteError), failure_recorded(cell.folder):
        raise NonFiniteError("NaN at <step> 3")
    text = Page(report(folder, "tiny.yaml")).text
    shutil.rmtree(cell.folder)
    assert "other seed failed" in text and "NaN at <step> 3" in text and "3 of 5 rows" in text


def test_rows_that_do_not_fit_together_break_their_section_alone(folder, monkeypatch):
    from iec.report import sections

    def refuse(*_):
        raise MetricError("scored against different <references>")

    monkeypatch.setattr(sections, "build_rows", refuse)
    page = Page(report(folder, "tiny.yaml"))
    assert "Not assembled: scored against different <references>" in page.text and "3.5 (r)" in page.text
    assert "0 of 5 rows" in page.text and not [alt for alt in page.images() if "samples" in alt]


def files_of(cell):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(cell.folder.rglob("*")) if path.is_file()}


def test_nothing_is_written_to_the_cells(folder):
    cells = read(folder).cells()
    held = {label: files_of(cells[label]) for label in FINISHED}
    report(folder, "tiny.yaml")
    assert held == {label: files_of(cells[label]) for label in FINISHED} and all(held.values())


@pytest.mark.parametrize(
    "file, content, row, said",
    [
        ("scores", None, False, "base + IEC not there: to be scored"),
        ("shards", None, False, "base + IEC not there: 1 of 2 shards"),
        ("shards/000000-000003.json", "{}", False, "base + IEC not there: 1 of 2 shards"),
        ("environment.json", "{}", True, "environment.json of the cell is missing or damaged"),
    ],
)
def test_a_damaged_cell_costs_its_own_row_alone(folder, file, content, row, said):
    cell = read(folder).cells()["base + IEC"].folder
    shutil.copytree(cell, folder.parent / "kept")
    try:
        if file == "scores":
            shutil.rmtree(cell / "scores")
            (cell / "scores.json").unlink()
        elif file == "shards":
            (cell / "shards" / "000000-000003.npz").unlink()
        else:
            (cell / file).write_text(content)
        html = report(folder, "tiny.yaml")
    finally:
        shutil.rmtree(cell)
        (folder.parent / "kept").rename(cell)
    text = Page(html).text
    assert said in text and f"{2 + row} of 5 rows" in text
    if not row and content is None:
        state = said.partition(": ")[2]
        assert f">{state}</td>" in html
        assert "the reading may speak of numbers that are not above" in text


def test_files_beside_the_cells_that_cannot_be_read_do_not_break_the_page(folder):
    analysis, reading = folder / "results" / "analysis", folder / "results" / "tiny" / "reading.md"
    (analysis / "broken.png").write_bytes(b"no picture")
    (analysis / "broken.json").write_text("[1]")
    reading.write_bytes(b"caf\xe9")
    try:
        text = Page(report(folder, "tiny.yaml")).text
    finally:
        (analysis / "broken.png").unlink()
        (analysis / "broken.json").unlink()
        reading.write_text(READING)
    assert "3 of 5 rows" in text and "caf\ufffd" in text and "errors: <X>" in text


def test_the_scale_is_said_when_it_was_not_asked_for(folder):
    out = folder.parent / "out"
    main([str(folder / "tiny.yaml"), f"paths.output={out}", "--output", str(out / "default.html")])
    assert f"scale {read_default(folder)}" in Page((out / "default.html").read_text(encoding="utf-8")).text


def read_default(folder):
    return Experiment.read(folder / "tiny.yaml").scale


def test_labels_are_escaped(html):
    assert "<b>tiny" not in html and "a &lt;b&gt;tiny&lt;/b&gt; &amp; &#34;quoted&#34; table" in html
    assert 'a < b & "c"' in Page(html).text and 'a < b & "c"' not in html
    assert {values["data-label"] for _, values in Page(html).tags if "data-label" in values} == set(FINISHED)


def test_the_sprites_are_the_images_and_pairs_are_found(folder, html):
    images = Page(html).images()
    for row in rows_of(folder)[0]:
        assert np.array_equal(pixels(images[f"6 samples of {row.label}"]), grid(row.result.first_images(6), columns=2, gap=GAP))
    assert families(html) == [["base", "base + IEC"]]
    plots = [values["src"] for tag, values in Page(html).tags if tag == "img" and "samples" not in values["alt"]]
    assert len(plots) == 5 and all(np.asarray(pixels(uri)).size for uri in plots)  # seconds, error, scores, cost; analysis


def families(html):
    """The labels of the rows that are shown with their corrections."""
    return [re.findall(r'data-label="(.*?)"', text) for text in re.findall(r'<div class="family">(.*?)</div>', html, re.DOTALL)]


def test_a_row_is_shown_once_whatever_number_of_corrections_it_has(folder, monkeypatch):
    from iec.report import sections

    monkeypatch.setattr(sections, "plots_of", lambda *_: [])
    again = "  the same: [iec=all_steps, iec.renorm=false]\n"  # the same cell, which is finished
    (folder / "family.yaml").write_text(SPEC.replace("  other seed", f"{again}  other seed"))
    try:
        html = report(folder, "family.yaml")
    finally:
        (folder / "family.yaml").unlink()
    assert families(html) == [["base", "base + IEC", "the same"]]
    assert html.count(Page(html).images()["6 samples of base"]) == 1


def test_a_row_of_the_same_images_has_no_place_among_the_psnrs(folder, monkeypatch):
    rows, experiment = rows_of(folder)
    for row in rows[1:]:
        row.scores[PSNR] = Interval(np.inf, np.inf, np.inf)
    assert panels_of(rows, experiment, monkeypatch) == ["FID (EffNet-Lite0)"]
    assert panels_of(rows_of(folder)[0], experiment, monkeypatch) == [PSNR, "FID (EffNet-Lite0)"]


def panels_of(rows, experiment, monkeypatch):
    """The metrics of the plot of quality against counted cost."""
    from iec.tables import plots

    drawn = []
    draw = plots.quality_against_cost
    with monkeypatch.context() as patched:
        patched.setattr(
            plots,
            "quality_against_cost",
            lambda path, panels, *rest: drawn.extend(panels if path.name == "cost.png" else ()) or draw(path, panels, *rest),
        )
        plots_of(rows, experiment)
    return drawn


def test_large_images_are_block_means():
    images = np.random.default_rng(0).integers(0, 256, (2, 4 * LARGEST_SIDE, 4 * LARGEST_SIDE, 3), np.uint8)
    small = _smaller(images, 4)
    assert small.shape == (2, LARGEST_SIDE, LARGEST_SIDE, 3) and _smaller(images, 1) is images
    for y, x in [(0, 0), (3, 100), (127, 127)]:
        mean = images[1, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].astype(float).mean(axis=(0, 1))
        assert np.abs(small[1, y, x] - mean).max() <= 0.5


def test_the_page_is_the_same_again_but_for_the_date(folder, html):
    again, first = (
        re.subn(r"Made on \d{4}-\d\d-\d\d", "Made", text) for text in (report(folder, "tiny.yaml", "broken.yaml"), html)
    )
    assert again == first and first[1] == 1


def test_the_reading_and_the_analysis(html):
    assert "<p>IEC <strong>raises</strong> the &lt;score&gt; &amp; <code>a*b</code>.</p>" in html
    assert "<ul>\n<li>one\nline</li>\n<li>two <strong>bold</strong> marks</li>\n</ul>" in html
    text = Page(html).text
    assert "errors: <X>" in text and "experiments/results/analysis/errors-x.json" in text
    assert "2026-01-02" in text and "a & b" in text


@pytest.mark.parametrize(
    "text, shown",
    [
        (" \n\n", ""),
        ("<script>x</script>", "<p>&lt;script&gt;x&lt;/script&gt;</p>"),
        ("a <b onclick=x>c</b>", "<p>a &lt;b onclick=x&gt;c&lt;/b&gt;</p>"),
        ("[x](https://a.b)", '<p><a href="https://a.b">x</a></p>'),
        ("[x](javascript:y)", "<p>[x](javascript:y)</p>"),
        ("[x](data:text/html,y)", "<p>[x](data:text/html,y)</p>"),
        ("[x](../table1/table.md)", "<p>[x](../table1/table.md)</p>"),
        ("<javascript:y>", "<p>&lt;javascript:y&gt;</p>"),
        ("**a `<i>` ** `", "<p>**a <code>&lt;i&gt;</code> ** `</p>"),
        ("a | b\n--|--\n1 | 2", None),
    ],
)
def test_a_reading_is_markdown_without_html_and_with_links_to_the_web_alone(text, shown):
    html = to_html(text)
    assert html == shown if shown is not None else "<table>" in html and "<td>2</td>" in html


def test_a_reading_loads_no_picture():
    assert "<img" not in to_html("![x](https://a.b/c.png)") and "<img" not in to_html("![x][y]\n\n[y]: https://a.b/c.png")


def test_an_output_that_cannot_be_written_is_refused_before_the_sections_are_read(folder, tmp_path, monkeypatch):
    from iec.report import __main__ as command

    monkeypatch.setattr(command, "read_section", lambda *_: pytest.fail("read before the output was checked"))
    (tmp_path / "taken").write_text("a file")
    for output in (tmp_path, tmp_path / "taken" / "report.html"):
        with pytest.raises(StoreError, match="--output FILE"):
            main([str(folder / "tiny.yaml"), "--output", str(output)])


def test_a_folder_without_experiments_is_refused_and_a_broken_one_keeps_its_section(tmp_path):
    (tmp_path / "only_analysed.yaml").write_text("title: x\nscales: {small: {}}\n")
    with pytest.raises(ConfigError, match="Name some"):
        tables(tmp_path)
    (tmp_path / "twice.yaml").write_text("a: 1\na: 2\n")
    assert [path.stem for path in tables(tmp_path)] == ["twice"]


def test_the_shipped_tables_are_found():
    names = [path.stem for path in tables(experiments())]
    assert names[:5] == ["table1", "table2", "table3", "table4", "table5"] and names[5:8] == ["figure3", "figure4", "figure5"]
    assert "controls" in names and not {"figure1", "figure2", "bundled"} & set(names)


PROBE = """
const flips = [...document.querySelectorAll(".flip")];
const seen = (flip) => [...flip.querySelectorAll("img")].filter((i) => getComputedStyle(i).visibility === "visible").length;
const shown = () => flips.map((flip) => flip.querySelector(".shown").textContent + seen(flip));
const states = [shown()];
flips[0].dispatchEvent(new PointerEvent("pointerenter", {pointerType: "mouse"})); states.push(shown());
flips[0].dispatchEvent(new PointerEvent("pointerleave", {pointerType: "mouse"})); states.push(shown());
flips[0].click(); states.push(shown());
const menu = document.querySelector(".compare select"); menu.selectedIndex = 1; menu.dispatchEvent(new Event("change"));
states.push([document.querySelector(".compare .shown").textContent]);
const row = [...document.querySelectorAll(".tall tbody tr")].find((line) => line.textContent.startsWith("base + IEC"));
row.querySelector("button").click();
const images = [...document.querySelectorAll("dialog img")].map((image) => image.src);
return {states, images, width: document.documentElement.clientWidth, page: document.documentElement.scrollWidth};
"""


@needs_browser
def test_in_a_browser_the_grids_flip_and_a_phone_does_not_scroll_sideways(html, tmp_path):
    found = answer(html, PROBE, tmp_path)
    other = 'a < b & "c"1'  # in the comparison; of the two images on top of each other one is to be seen
    plain, changed = ["base1", other], ["base + IEC1", other]
    assert found["states"] == [plain, changed, plain, changed, ["base + IEC"]]
    images = Page(html).images()
    assert found["images"] == [images[f"6 samples of {label}"] for label in ("base", "base + IEC")]
    assert found["page"] == found["width"] <= WIDTH
