"""Plots: what is drawn is what was measured, a row looks the same everywhere, and no label covers another or becomes a formula."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from iec.efficiency.cost import CallCost
from iec.metrics.interval import Interval
from iec.tables import maps, plots
from iec.tables.experiment import Experiment
from iec.tables.figures import grid_labels, write_plots
from iec.tables.measured import Curve, Measured, changes_of
from iec.tables.rows import Row
from iec.tables.styles import GREY, bases, styles

ROWS = {
    "FP": ["efficiency=none", "iec=none"],
    "FP + IEC": ["efficiency=none", "iec=all_steps"],
    "W8A8": ["efficiency=w8a8"],
    "W8A8 + IEC": ["efficiency=w8a8", "iec=all_steps"],
    "W8A8, Heun": ["efficiency=w8a8", "iec=heun"],
    "W8A8, 2T": ["efficiency=w8a8", "iec=none", "sampler.steps=40"],
    "N=5": ["efficiency=deepcache", "efficiency.interval=5"],
    "N=5 + IEC": ["efficiency=deepcache", "efficiency.interval=5", "iec=all_steps"],
}
NAMES = ["$x$", "_hidden", "a | b\nc", "cost $", "[red]", "\\frac{1}{0}", "100 %", "$\\bad$"]


@pytest.fixture
def drawn(monkeypatch):
    """name of the file -> the figure, open after it was saved."""
    figures = {}
    save = plots.save

    def keep(figure, path, title="", note=""):
        monkeypatch.setattr(plots.plt, "close", lambda _: None)
        save(figure, path, title, note)
        figures[path.name] = figure

    monkeypatch.setattr(plots, "save", keep)
    monkeypatch.setattr(maps, "save", keep)
    yield figures
    monkeypatch.undo()
    plt.close("all")


def experiment(names=tuple(ROWS), **fields):
    rows = dict(zip(names, ROWS.values(), strict=True))
    return Experiment("x", "a title with $ and $", (names[0],), rows, {}, labels=tuple(names), **fields)


def measurements(names=tuple(ROWS), steps=20):
    spread = np.random.default_rng(0).normal(size=(8, len(ROWS), steps + 1)) * 0.01
    values = np.linspace(0, 1, steps + 1) * np.arange(1, 9)[:, None] + spread  # [rows, T + 1] + [n, rows, T + 1]
    origin = {names.index(a): names.index(b) for a, b in bases(dict(zip(names, ROWS.values(), strict=True))).items()}
    return [
        Measured(
            label=label,
            images=8,
            scores={"FID": Interval(100.0 + k, 99.0 + k, 101.0 + k)}
            | ({"PSNR to ref. (dB)": Interval(30.0 + k, 29, 41)} if k else {}),
            higher_is_better={"FID": False, "PSNR to ref. (dB)": True},
            cost=CallCost(1e9 * (1 + k % 3), 1e12 * (1 + k % 3)),
            distance=Curve.of(values[:, k]) if k else None,
            difference=Curve.of(values[:, k] - values[:, origin[k]]) if origin.get(k) else None,
            traced=8,
            changes={"FID": Interval(1.0, 0.5, 2.0)} if k else {},
            noise=Curve.of(1 + spread[:, k, 1:]) if k else None,
        )
        for k, label in enumerate(names)
    ]


def legend(figure):
    (box,) = figure.legends
    return {text.get_text(): handle for text, handle in zip(box.get_texts(), box.legend_handles, strict=True)}


def test_colour_is_the_technique_and_filling_and_marker_the_corrector():
    found = styles(ROWS)
    assert found["FP + IEC"].marker == found["FP"].marker == "o" and found["FP"].filled and not found["FP + IEC"].filled
    for plain, corrected in [("FP", "FP + IEC"), ("W8A8", "W8A8 + IEC"), ("N=5", "N=5 + IEC")]:
        assert found[plain].colour == found[corrected].colour
    assert len({found[label].colour for label in ("FP", "W8A8", "N=5")}) == 3
    assert len({(s.colour, s.marker, s.filled) for s in found.values()}) == len(ROWS)
    assert found["W8A8, Heun"].marker != found["W8A8"].marker != found["W8A8, 2T"].marker


def test_colour_is_the_corrector_where_there_is_one_technique():
    ways = {"plain": [], "IEC": ["iec=all_steps"], "UniC": ["corrector=unic"], "2T": ["sampler.steps=40"]}
    found = styles(ways)
    assert len({style.colour for style in found.values()}) == len({style.marker for style in found.values()}) + 1 == 4
    varied = styles({"a": ["efficiency.interval=5"], "b": ["efficiency.interval=9"]})
    assert varied["a"].colour != varied["b"].colour and varied["a"].marker != varied["b"].marker


def test_a_row_is_paired_with_the_row_that_lacks_its_corrector_alone():
    pairs = {"FP + IEC": "FP", "W8A8 + IEC": "W8A8", "W8A8, Heun": "W8A8", "N=5 + IEC": "N=5"}
    assert bases(ROWS) == pairs
    assert bases({"a": ["iec=all_steps", "iec=none"], "b": ["iec=none", "iec=all_steps", "seed=1"]}) == {}
    assert bases({"b": ["iec=all_steps", "iec.lambda=1"], "a": []}) == {"b": "a"}
    without_a_call = {"a": [], "b": ["corrector=unic"], "c": ["corrector=affine", "corrector.fit=d2", "iec=all_steps"]}
    assert bases(without_a_call) == {"b": "a", "c": "a"} and not styles(without_a_call)["b"].filled


def test_a_row_looks_the_same_in_every_plot_and_whatever_else_is_there(tmp_path, drawn):
    write_plots(measurements(), experiment(), tmp_path)
    assert drawn.keys() == {"error.png", "scores.png", "cost.png"}
    style = styles(ROWS)
    for name in ("error.png", "cost.png"):
        for label, handle in legend(drawn[name]).items():
            assert (handle.get_color(), handle.get_marker()) == (style[label].colour, style[label].marker)
            assert (handle.get_markerfacecolor() == "white") == ("IEC" in label or "Heun" in label)
    assert set(legend(drawn["cost.png"])) == set(ROWS) and set(legend(drawn["error.png"])) == set(ROWS) - {"FP"}
    few = [m for m in measurements() if m.label in ("FP", "FP + IEC", "N=5")]
    write_plots(few, experiment(), tmp_path)
    assert {label: h.get_color() for label, h in legend(drawn["cost.png"]).items()} == {m.label: style[m.label].colour for m in few}


def test_the_legend_covers_no_axis_and_no_entry_another(tmp_path, drawn):
    names = [f"a row with a label that is long, number {k}" for k in range(len(ROWS))]
    write_plots(measurements(names), experiment(names), tmp_path)
    for figure in drawn.values():
        boxes = [axis.get_window_extent() for axis in figure.axes]
        for box in figure.legends:
            assert not any(box.get_window_extent().overlaps(other) for other in boxes)
            texts = [text.get_window_extent() for text in box.get_texts()]
            assert not any(a.overlaps(b) for k, a in enumerate(texts) for b in texts[:k])
        assert not any(axis.texts for axis in figure.axes)


def test_the_second_panel_is_the_paired_difference_with_its_band(tmp_path, drawn):
    rows = measurements()
    write_plots(rows, experiment(), tmp_path)
    distance, change = drawn["error.png"].axes
    (curve,) = (line for line in distance.lines if line.get_color() == styles(ROWS)["N=5"].colour and line.get_linestyle() == "-")
    assert np.array_equal(curve.get_ydata(), next(m.distance.mean for m in rows if m.label == "N=5"))
    expected = [m.difference for m in rows if m.difference is not None]
    assert len(expected) == 3 and not distance.collections and len(change.collections) == 3
    assert [list(line.get_ydata()) for line in change.lines[:3]] == [list(curve.mean) for curve in expected]
    for axis in (distance, change):
        assert all(tick == int(tick) for tick in axis.get_xticks())


@pytest.mark.parametrize("steps", [2, 3, 5, 20])
def test_ticks_are_at_whole_steps(tmp_path, drawn, steps):
    write_plots(measurements(steps=steps), experiment(), tmp_path)
    assert all(tick == int(tick) for axis in drawn["error.png"].axes for tick in axis.get_xticks())


def test_labels_with_marks_of_formulas_are_shown_as_they_are(tmp_path, drawn):
    write_plots(measurements(NAMES), experiment(NAMES), tmp_path)
    shown = [text.replace(r"\$", "$") for text in legend(drawn["cost.png"])]
    assert shown == [" ".join(name.split()) for name in NAMES]
    assert all(r"\$" in text or "$" not in text for text in legend(drawn["cost.png"]))
    plots.sample_grid(tmp_path / "grid.png", {name: np.zeros((2, 8, 8, 3), np.uint8) for name in NAMES}, "$")


def test_a_picture_of_few_of_the_rows_is_not_written(tmp_path, drawn):
    rows = [m if k < 3 else Measured(**{**vars(m), "distance": None, "difference": None}) for k, m in enumerate(measurements())]
    write_plots(rows, experiment(), tmp_path)
    assert drawn.keys() == {"scores.png", "cost.png"}


def test_scores_lead_from_the_row_without_correction(tmp_path, drawn):
    write_plots(measurements(), experiment(), tmp_path)
    axis = drawn["scores.png"].axes[0]
    starts = [tuple(line.get_xdata()) for line in axis.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2]
    value = {m.label: m.scores["FID"].value for m in measurements()}
    assert starts == [(value[base], value[label]) for label, base in bases(ROWS).items()]
    assert [text.get_text() for text in axis.get_yticklabels()] == list(ROWS)


def test_the_floor_is_a_dotted_line_in_the_panel_of_its_score(tmp_path, drawn):
    rows = [replace(m, floors={"FID": 88.5}) for m in measurements()]
    write_plots(rows, experiment(), tmp_path)
    axis = drawn["scores.png"].axes[0]
    assert [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"] == [88.5]
    assert "dotted: as many real images" in drawn["scores.png"].get_suptitle()


def test_the_noise_is_drawn_of_the_rows_that_are_asked_for(tmp_path, drawn):
    names = tuple(ROWS)
    write_plots(measurements(), experiment(noise=names[:3]), tmp_path)
    axis = drawn["noise.png"].axes[0]
    curves = [line for line in axis.lines if len(line.get_xdata()) == 20]
    assert [line.get_color() for line in curves] == [styles(ROWS)[name].colour for name in names[1:3]]  # the reference has none
    assert list(curves[0].get_ydata()) == list(measurements()[1].noise.mean)
    assert list(legend(drawn["noise.png"])) == list(names[1:3])


def test_infinite_scores_and_unknown_costs_have_no_place(tmp_path, drawn):
    rows = [Measured(**{**vars(m), "scores": {"FID": m.scores["FID"]}}) for m in measurements()]
    write_plots(rows, experiment(), tmp_path)
    assert [axis.get_ylabel() for axis in drawn["cost.png"].axes] == ["FID"]
    drawn.clear()
    write_plots([Measured(**{**vars(m), "cost": None}) for m in rows], experiment(), tmp_path)
    assert "cost.png" not in drawn


def timed(arithmetic):
    """`measurements` with seconds; arithmetic: by label, of those that are no plain float."""
    return [replace(m, seconds=1.0 + k, arithmetic=arithmetic.get(m.label, "")) for k, m in enumerate(measurements())]


def test_measured_seconds_are_the_first_plot_and_simulated_ones_are_grey_and_not_on_the_front(tmp_path, drawn):
    rows = timed({"FP": "sim.", "FP + IEC": "int8"})  # the two quickest, and the best by FID
    first, *_ = write_plots(rows, experiment(), tmp_path)
    assert first.name == "seconds.png"
    style, figure = styles(ROWS), drawn["seconds.png"]
    expected = {m.label: GREY if m.label == "FP" else style[m.label].colour for m in rows}
    assert {label: handle.get_color() for label, handle in legend(figure).items()} == expected
    (axis,) = (axis for axis in figure.axes if axis.get_ylabel() == "FID")
    (front,) = (line for line in axis.lines if line.get_linestyle() == ":")
    assert front.get_xdata()[0] == rows[1].seconds and rows[0].seconds < rows[1].seconds
    assert "grey: simulated quantization" in figure.get_suptitle()
    write_plots(timed({}), experiment(), tmp_path)
    assert "grey" not in drawn["seconds.png"].get_suptitle()


def test_seconds_that_are_all_simulated_or_unknown_are_no_plot(tmp_path, drawn):
    write_plots(timed(dict.fromkeys(ROWS, "sim.")), experiment(), tmp_path)
    write_plots(measurements(), experiment(), tmp_path)
    assert "seconds.png" not in drawn and "cost.png" in drawn


def test_a_grid_has_a_handful_of_rows():
    rows = measurements()
    assert grid_labels(rows, experiment(grid=("W8A8", "FP", "W8A8 + IEC"))) == ["W8A8", "FP", "W8A8 + IEC"]
    assert grid_labels(rows[:2], experiment(grid=("W8A8",))) == ["FP", "FP + IEC"]
    order = ["FP", "FP + IEC", "W8A8", "W8A8 + IEC", "W8A8, Heun", "N=5", "N=5 + IEC", "W8A8, 2T"]
    assert grid_labels(rows, experiment()) == order


def test_a_measurement_survives_its_entry_in_the_table():
    for row in timed({"FP": "sim."}):
        kinds = {name: {"label": name, "higher_is_better": name != "FID"} for name in row.scores}
        manifest = {"num_images": 8, "seconds_per_image": row.seconds}
        entry = {"label": row.label, "manifest": manifest, "record": {"scores": kinds}, **row.as_json()}
        again = Measured.from_json(entry)
        assert (again.seconds, again.arithmetic) == (row.seconds, row.arithmetic)
        del entry["arithmetic"]  # of an older version, which does not say whose seconds are real
        assert Measured.from_json(entry).seconds is None
        assert again.changes == row.changes
        assert again.floors == row.floors == {}
        assert (again.scores, again.cost, again.traced, again.images) == (row.scores, row.cost, row.traced, row.images)
        for name in ("distance", "difference", "noise"):
            ours, theirs = getattr(row, name), getattr(again, name)
            assert (ours is None) == (theirs is None) and (ours is None or np.array_equal(ours.mean, theirs.mean))
        assert row.difference is None or np.array_equal(row.difference.high, again.difference.high)


def test_the_pareto_front_is_what_no_other_row_beats():
    draw = np.random.default_rng(0)
    for n in range(1, 30):
        places = {f"row {k}": (float(a), float(b)) for k, (a, b) in enumerate(draw.integers(0, 6, (n, 2)))}
        for sign in (1, -1):
            front = plots.pareto_front(places, sign < 0)
            beaten = {
                a: any(places[b][0] <= x and sign * places[b][1] <= sign * y and places[b] != (x, y) for b in places)
                for a, (x, y) in places.items()
            }
            assert {places[label] for label in front} == {places[label] for label in places if not beaten[label]}
            assert [places[label][0] for label in front] == sorted({places[label][0] for label in front})


def test_a_change_is_paired_where_images_are_and_of_two_intervals_elsewhere():
    spread = np.random.default_rng(0).normal(size=40) * 30  # of the images; both rows have the same
    undefined = np.where(np.arange(40) < 5, np.nan, 0.0)
    values = {"plain": spread + undefined, "corrected": spread + 1 + undefined}
    rows = [
        Row(
            label,
            None,
            {"FID": Interval(fid, fid - 3, fid + 3), "RMSE": Interval(0.0), "same": Interval(np.inf)},
            None,
            {"RMSE": v},
        )
        for (label, v), fid in zip(values.items(), (100.0, 90.0), strict=True)
    ]
    changes = changes_of(rows[1], rows[0])
    assert changes.keys() == {"FID", "RMSE"}
    assert tuple(changes["RMSE"]) == pytest.approx((1, 1, 1))  # though the images differ by 30
    assert tuple(changes["FID"]) == pytest.approx((-10, -10 - 18**0.5, -10 + 18**0.5))


def test_a_map_has_a_panel_for_each_correction_and_marks_what_is_certain(tmp_path, drawn):
    ys, xs, endings = ("exact", "rough $"), (", T=10", ", T=20", ", T=30"), ("", ", IEC", ", Heun")
    known = {
        ("exact", ", T=10", ", IEC"): (-8.0, -9, -7),
        ("exact", ", T=20", ", IEC"): (0.25, -1, 2),
        ("rough $", ", T=20", ", Heun"): (12, 11, 13),
    }
    rows = {y + x + ending: ["iec=all_steps"] for y in ys for x in xs for ending in endings}
    entries = [
        Measured(label, 8, {}, {"FID (net)": False}, None, None, None, 0, {"FID (net)": Interval(*change)} if change else {})
        for label, change in [("exact, T=10", None), *(("".join(key), change) for key, change in known.items())]
    ]
    mapped = Experiment("x", "a title", (), rows, {}, labels=tuple(rows), product=(ys, xs, endings))
    (path,) = (path for path in write_plots(entries, mapped, tmp_path) if path.name.startswith("map"))
    assert path.name == "map-fid-net.png"
    iec, heun = drawn[path.name].axes
    assert [axis.get_title() for axis in (iec, heun)] == ["IEC", "Heun"]
    assert [tick.get_text() for tick in iec.get_xticklabels()] == ["T=10", "T=20"]  # nothing is known of T=30
    assert [tick.get_text() for tick in iec.get_yticklabels()] == ["exact", r"rough \$"]
    assert {(text.get_text(), text.get_position(), text.get_weight()) for text in iec.texts} == {
        ("-8", (0, 0), "bold"),
        ("(+0.25)", (1, 0), "normal"),
    }
    (gains,) = (image.get_array() for image in iec.get_images())
    assert gains[0, 0] == 8 and gains[0, 1] == -0.25 and gains.mask[1].all()  # a lower FID is better
    assert "in brackets: the 95 % interval" in drawn[path.name].get_suptitle()
    assert not [p for p in write_plots(entries[:1], mapped, tmp_path) if p.name.startswith("map")]
