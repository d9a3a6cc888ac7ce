"""The explorer: rows of several sections once, scores on axes of their own, and what its script does with them in a browser."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from iec.report import pictures
from iec.report.entries import CALLS, SECONDS, Axis, Entry, Place
from iec.report.explorer import explorer, merge
from iec.report.page import page
from iec.report.pictures import Sprite
from iec.report.sections import Section
from iec.tables import figures
from tests.report.browser import WIDTH, answer, needs_browser

FID = Axis("FID", "cifar10", 64, higher_is_better=False, compared_with="reference and rules")
PSNR = Axis("PSNR", "cifar10", 64, higher_is_better=True, compared_with="cell", beside="small, T = 20")
MACS = "multiply-adds an image (G)"


def entry(label, technique, correction, seconds, fid, psnr=None, base=None, simulated=False, data="cifar10"):
    scores = {replace(FID, data=data): (fid, fid - 1, fid + 1)} | ({PSNR: psnr} if psnr else {})
    return Entry(
        key=(label, 64),
        data=data,
        places=(Place("one", label, 1),),
        facets={"Model": "small", "Technique": technique, "Correction": correction, "Steps T": "20"},
        costs={SECONDS: seconds, CALLS: 20.0} | ({} if simulated else {MACS: 6.0}),
        calls="20 (20+0+0)",
        arithmetic="sim." if simulated else "",
        simulated=simulated,
        machines=("a",),
        scores=scores,
        first=next(iter(scores)),
        base=None if base is None else (base, 64),
        command=f"python -m iec run {label}",
    )


ENTRIES = [
    entry("plain", "full precision", "none", 0.4, 10.0),
    entry("corrected", "full precision", "IEC", 0.8, 8.0, (30.0, 29.0, 31.0), base="plain"),
    entry("quantized", "w8a8", "none", 0.1, 5.0, (None, None, None), simulated=True),
    entry("cached", "deepcache", "none", 0.2, 20.0, (25.0, None, None)),
    entry("cached <Heun>", "deepcache", "Heun", 0.6, 9.0, (24.0, None, None), base="cached"),
    entry("other data", "deepcache", "none", 0.2, 20.0, data="fashion"),
]


@pytest.fixture(scope="module")
def html():
    sprites = [Sprite(own.places[0].label, f"data:image/png;base64,{k}", 4, 2, 1) for k, own in enumerate(ENTRIES)]
    again = [replace(own, places=(replace(own.places[0], section="two"),)) for own in ENTRIES]
    sections = [Section("one", "One", "", alone=sprites, entries=ENTRIES), Section("two", "Two", "", entries=again)]
    return page(sections, [], "2026-01-02", None)


def test_a_row_of_two_sections_is_one_with_what_both_know():
    again = replace(ENTRIES[0], places=(Place("two", "base", 4),), scores={PSNR: (1.0, None, None)}, base=("cached", 64))
    merged = merge([*ENTRIES, again])
    one = merged[again.key]
    assert len(merged) == len(ENTRIES) and [place.label for place in one.places] == ["plain", "base"]
    assert list(one.scores) == [FID, PSNR] and one.base == ("cached", 64) and one.first == FID


def test_other_images_of_a_cell_are_another_row():
    assert len(merge([ENTRIES[0], replace(ENTRIES[0], key=("plain", 128))])) == 2


def test_scores_that_compare_with_other_things_have_axes_of_their_own_names():
    other = replace(FID, compared_with="other rules 12345678")
    data = explorer([ENTRIES[0], replace(ENTRIES[3], scores={other: (1.0, None, None)}), *ENTRIES[1:3]])
    assert [axis["label"] for axis in data["axes"]] == ["FID (nd rules)", "FID (12345678)", "PSNR: small, T = 20"]
    assert [axis["column"] for axis in data["axes"]] == [True, False, True]


def test_the_largest_data_set_is_first_and_none_is_the_first_correction():
    data = explorer([ENTRIES[-1], ENTRIES[1], *ENTRIES])
    assert data["scopes"] == [{"data": "cifar10", "n": 64}, {"data": "fashion", "n": 64}]
    assert {facet["name"]: facet["values"] for facet in data["facets"]}["Correction"] == ["none", "IEC", "Heun"]


def test_without_finished_rows_there_is_no_explorer():
    assert explorer([]) is None
    assert 'id="entries"' not in page([Section("one", "One", "")], [], "", None)


def test_every_plot_of_a_table_has_a_title_on_the_page():
    names = re.findall(r'_path\(folder, "(\w+)"', Path(figures.__file__).read_text(encoding="utf-8"))
    assert set(names) - {"grid"} == pictures.KINDS.keys()


PROBE = """
const place = document.getElementById("explorer");
const [scope, score, cost] = place.querySelectorAll("select");
const [least] = place.querySelectorAll("input[type=number]");
const set = (control, value) => {
  control.value = value;
  for (const name of ["input", "change"]) control.dispatchEvent(new Event(name));
};
const rows = () => [...place.querySelectorAll("tbody th")].map((cell) => cell.textContent);
const points = () => [...place.querySelectorAll(".point")];
const names = () => points().map((p) => p.getAttribute("aria-label"));
const front = () => names().filter((name) => name.endsWith("front")).map((name) => name.split(":")[0]);
const box = (text) => [...place.querySelectorAll(".chip")].find((chip) => chip.textContent.startsWith(text));
const heading = (text) => [...place.querySelectorAll("thead th")].find((cell) => cell.textContent === text);
const sort = (text) => {
  heading(text).querySelector("button").click();
  return [heading(text).getAttribute("aria-sort"), ...rows()];
};
const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const said = {};
said.all = rows(); said.front = front(); said.status = place.querySelector("[role=status]").textContent;
said.grey = points().filter((p) => p.querySelector(".grey")).map((p) => p.dataset.key);
said.hollow = points().filter((p) => p.querySelector(".hollow")).map((p) => p.dataset.key);
said.sorted = [sort("PSNR: small, T = 20"), sort("PSNR: small, T = 20")];
set(cost, "1"); said.calls = front(); set(cost, "0");
set(least, "0.3"); said.ranged = rows(); said.chip = box("deepcache").textContent; set(least, "");
box("deepcache").querySelector("input").click(); said.unchecked = box("w8a8").textContent;
box("w8a8").querySelector("input").click(); said.checked = rows();
box("none").querySelector("input").click(); said.both = rows(); said.filtered = place.querySelector("[role=status]").textContent;
place.querySelector(".status button").click(); said.cleared = rows().length;
set(score, "1"); said.psnr = [points().length, ...front()]; set(score, "0");
const first = place.querySelector(".point[tabindex='0']"); first.focus(); press(first, "ArrowRight");
said.focus = document.activeElement.dataset.key; press(document.activeElement, "Enter");
const dialog = document.querySelector("dialog");
said.opened = [dialog.open, dialog.querySelector("h2").textContent];
dialog.close(); said.again = document.activeElement.dataset.key;
const button = [...place.querySelectorAll("tbody button")].find((own) => own.textContent === "cached <Heun>");
button.focus(); button.click();
said.images = [...dialog.querySelectorAll("img")].map((image) => image.getAttribute("src"));
said.text = dialog.textContent; said.links = [...dialog.querySelectorAll("a")].map((link) => link.getAttribute("href"));
said.dialog = [dialog.scrollWidth, dialog.clientWidth];
dialog.close(); said.back = document.activeElement.textContent;
set(scope, "1"); said.other = rows();
said.page = [document.documentElement.scrollWidth, document.documentElement.clientWidth];
return said;
"""


@needs_browser
def test_in_a_browser_rows_are_filtered_sorted_plotted_and_chosen(html, tmp_path):
    said = answer(html, PROBE, tmp_path)
    assert isinstance(said, dict), said
    names = [own.places[0].label for own in ENTRIES[:-1]]
    plain, corrected, quantized, cached, heun = names
    assert said["all"] == names and said["status"] == "5 of 5 rows."
    assert said["front"] == [cached, plain, heun, corrected]  # the seconds of a simulated row are none
    assert said["grey"] == ["2"] and said["hollow"] == ["4", "1"] and said["calls"] == [quantized]
    rising = [heun, cached, corrected, quantized]  # the same images: the highest PSNR there is
    assert said["sorted"] == [["ascending", *rising, plain], ["descending", *rising[::-1], plain]]
    assert said["ranged"] == [corrected, heun, plain]
    assert said["chip"] == "deepcache1" and said["checked"] == [quantized, cached, heun]
    assert said["both"] == [quantized, cached] and said["filtered"] == "2 of 5 rows." and said["cleared"] == 5
    assert said["unchecked"] == "w8a81"  # as many as checking it would add
    assert said["psnr"] == [3, cached, corrected]  # the plain row has none, and that of the same images is infinite
    assert said["focus"] == said["again"] == "3" and said["opened"] == [True, cached]
    assert said["images"] == ["data:image/png;base64,3", "data:image/png;base64,4"] and said["back"] == heun
    assert "python -m iec run cached " in said["text"] and "python -m iec run cached <Heun>" in said["text"]
    assert said["links"] == ["#one-1", "#two-1"] * 2 and said["other"] == ["other data"]
    assert said["dialog"][0] == said["dialog"][1] and said["page"][0] == said["page"][1] <= WIDTH
