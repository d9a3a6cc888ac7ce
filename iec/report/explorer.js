// All rows: filters, a plot, a sortable table, and a row beside its plain one. Draws everything from the page's JSON.

const SECONDS = 0;
const CALLS = 1;

// Four significant digits, as in the tables.
function digits(value) {
  return value.toLocaleString("en", { minimumSignificantDigits: 4, maximumSignificantDigits: 4, useGrouping: false });
}

function scoreText(score) {
  if (!score) return "";
  const [value, low, high] = score;
  if (value === null) return "same images";
  return low === null ? digits(value) : `${digits(value)} [${digits(low)}, ${digits(high)}]`;
}

function costText(entry, k) {
  if (entry.costs[k] === null) return "";
  if (k === CALLS) return entry.calls;
  return k === SECONDS ? `${digits(entry.costs[k])} ${entry.arithmetic}`.trim() : digits(entry.costs[k]);
}

// What is known of a row, as columns {name, value(entry), text(entry)}; a value is null where it is not known.
function columnsOf(data) {
  const facets = data.facets.map(({ name, values }, k) => {
    const text = (entry) => values[entry.facets[k]];
    return { name, value: text, text, words: Number.isNaN(Number(values[0])) };
  });
  const costs = data.costs.map((name, k) => ({ name, value: (entry) => entry.costs[k], text: (entry) => costText(entry, k) }));
  const scores = data.axes.map(({ label }, k) => {
    const value = (entry) => (k in entry.scores ? entry.scores[k][0] ?? Infinity : null);
    return { name: label, value, text: (entry) => scoreText(entry.scores[k]) };
  });
  return { facets, costs, scores };
}

// How rows are marked: the hue is the technique, the shape the correction; the first one has that of a plain row, but hollow.
function marksOf(data) {
  const [technique, correction] = ["Technique", "Correction"].map((name) => data.facets.findIndex((facet) => facet.name === name));
  const plain = data.facets[correction].values[0] === "none" ? 1 : 0;
  const colour = (value) => data.hues[value % data.hues.length];
  const shape = (value) => ({ marker: data.markers[Math.max(0, value - plain) % data.markers.length], filled: value < plain });
  return {
    ofFacet: (facet, value) => {
      if (facet === technique) return { colour: colour(value), marker: data.markers[0], filled: true };
      return facet === correction ? { colour: data.hues[0], ...shape(value) } : null;
    },
    ofEntry: ({ facets }, grey) => ({ ...shape(facets[correction]), colour: grey ? data.grey : colour(facets[technique]), grey }),
  };
}

// A row beside the one that it is compared with: images, what is known of both, the commands, and where the page shows them.
function rowDialog(entries, columns) {
  const title = make("h2", { id: "chosen" });
  const content = make("div");
  const close = make("button", { type: "button", className: "all", textContent: "Close", onclick: () => dialog.close() });
  const dialog = make("dialog", {}, make("header", {}, title, close), content);
  dialog.setAttribute("aria-labelledby", "chosen");
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  function picture(entry) {
    const image = entry.places.map((place) => samples.get(`${place.section}/${place.label}`)).find(Boolean);
    const shown = image ? [image.cloneNode()] : [];
    return make("figure", { className: "cell" }, ...shown, make("figcaption", { textContent: entry.label }));
  }
  function origin(entry) {
    const links = entry.places.flatMap(({ section, line }, k) => {
      const text = document.getElementById(section).querySelector("h2").textContent;
      return [k ? "; " : "", make("a", { href: `#${section}-${line}`, textContent: text, onclick: () => dialog.close() })];
    });
    const command = make("code", { textContent: entry.command });
    return make("p", { className: "command" }, `${entry.label}: `, command, make("br"), "In ", ...links);
  }
  function line({ name, text }, shown) {
    const cells = shown.map((entry) => make("td", { textContent: text(entry) }));
    return make("tr", {}, make("th", { scope: "row", textContent: name }), ...cells);
  }
  function show(key) {
    const shown = [entries[key].base, key].filter((own) => own !== null).map((own) => entries[own]);
    const known = Object.values(columns).flat().filter((column) => shown.some((entry) => column.text(entry)));
    const names = shown.map((entry) => make("th", { scope: "col", textContent: entry.label }));
    title.textContent = entries[key].label;
    content.replaceChildren(
      make("div", { className: "beside" }, ...shown.map(picture)),
      make("table", {},
        make("thead", {}, make("tr", {}, make("td"), ...names)),
        make("tbody", {}, ...known.map((column) => line(column, shown)))),
      ...shown.map(origin),
    );
    dialog.showModal();
    dialog.scrollTop = 0;
  }
  return { element: dialog, show };
}

// What is chosen of the entries: of a data set and N, with one of the checked values of each facet, and a cost in a range.
function filters(data, entries, marks, changed) {
  const scope = menu(data.scopes.map((own, k) => [k, `${own.data}, N = ${own.n}`]));
  const score = menu([]);
  const cost = menu(data.costs.map((name, k) => [k, name]));
  const ends = ["least", "most"].map((name) =>
    make("input", { type: "number", step: "any", min: "0", placeholder: name, ariaLabel: `${name} cost`, oninput: changed }));
  const checked = data.facets.map(() => new Set());
  const facets = data.facets.map((facet, k) => chips(facet, checked[k], (value) => marks.ofFacet(k, value), changed));

  const all = () => entries.filter((entry) => entry.scope === Number(scope.value));
  const costOf = (entry) => entry.costs[cost.value];
  function passing(without) {
    const [low, high] = ends.map((input, k) => (input.value === "" ? [-Infinity, Infinity][k] : Number(input.value)));
    const ranged = ends.some((input) => input.value !== "");
    return all().filter((entry) => (!ranged || (costOf(entry) !== null && costOf(entry) >= low && costOf(entry) <= high))
      && checked.every((values, k) => k === without || !values.size || values.has(entry.facets[k])));
  }
  function count() {
    facets.forEach((facet, k) => {
      const [there, found] = [all(), passing(k)].map((rows) => rows.map((entry) => entry.facets[k]));
      facet.count(there, found);
    });
  }
  function clear() {
    checked.forEach((values) => values.clear());
    ends.forEach((input) => { input.value = ""; });
    changed();
  }
  function enter() {
    fill(score, data.axes.map((axis, k) => [k, axis.label]).filter(([k]) => data.axes[k].scope === Number(scope.value)));
    clear();
  }
  scope.addEventListener("change", enter);
  score.addEventListener("change", changed);
  cost.addEventListener("change", () => { ends.forEach((input) => { input.value = ""; }); changed(); });
  const labels = [["Data set and N", scope], ["Score", score], ["Cost", cost]].map((parts) => make("label", {}, ...parts));
  const range = make("div", { className: "range" }, make("span", { textContent: "Cost between" }), ...ends);
  const elements = [make("div", { className: "menus" }, ...labels, range), ...facets.map((facet) => facet.element)];
  return { elements, all, passing, count, clear, enter, costOf, score, cost };
}

// Draws the plot of some rows; returns what is to be said of it, and how many have a place in it.
function plotRows(svg, rows, data, marks, chosen) {
  const axis = data.axes[chosen.score.value];
  const timed = Number(chosen.cost.value) === SECONDS;
  const known = rows.filter((entry) => chosen.costOf(entry) > 0 && Number.isFinite(entry.scores[chosen.score.value]?.[0]));
  const points = known.map((entry) => {
    const [y, low, high] = entry.scores[chosen.score.value];
    const outside = timed && entry.simulated;
    const name = `${entry.label}: ${digits(y)} at ${costText(entry, Number(chosen.cost.value))}`;
    const place = { x: chosen.costOf(entry), y, low, high, outside };
    return { key: entry.key, base: entry.base, name, ...place, ...marks.ofEntry(entry, outside) };
  });
  const ylabel = axis ? `${axis.label}, ${axis.higher ? "higher" : "lower"} is better` : "";
  svg.classList.toggle("none", !points.length);
  drawChart(svg, points, { higher: axis?.higher, xlabel: data.costs[chosen.cost.value], ylabel });
  if (!points.length) return { count: 0, note: "No row shown has both this score and this cost." };
  const machines = new Set(known.flatMap((entry) => entry.machines)).size;
  const notes = ["Dotted: no other row shown is better at the same cost or less. Hollow: corrected; a line begins at the plain one."];
  if (points.some((point) => point.outside)) {
    notes.push("Grey: simulated quantization, whose seconds are no integer kernel's; not on the front.");
  }
  if (timed && machines > 1) notes.push(`The seconds are of ${machines} machines.`);
  return { count: points.length, note: notes.join(" ") };
}

function explore(place, data) {
  const entries = data.entries.map((entry, key) => ({ ...entry, key, label: entry.places[0].label }));
  const [columns, marks, svg] = [columnsOf(data), marksOf(data), place.querySelector("svg")];
  const status = make("p", { className: "meta", role: "status" });
  const note = make("p", { className: "caption" });
  const chosen = filters(data, entries, marks, render);
  const clear = make("button", { type: "button", className: "all", textContent: "Clear the filters", onclick: chosen.clear });
  const dialog = rowDialog(entries, columns);
  const table = sortableTable(show);
  let current = null;

  function render() {
    const [rows, all] = [chosen.passing(), chosen.all()];
    chosen.count();
    const scores = columns.scores.filter((column, k) =>
      (data.axes[k].column || k === Number(chosen.score.value)) && rows.some((entry) => column.value(entry) !== null));
    const label = (entry) => entry.label;
    table.fill([{ name: "Row", value: label, text: label, words: true }, ...columns.facets, ...scores, ...columns.costs], rows);
    const plotted = plot();
    status.textContent = `${rows.length} of ${all.length} rows${plotted < rows.length ? `, ${plotted} of them in the plot` : ""}.`;
    clear.disabled = rows.length === all.length;
  }
  function plot() {
    const plotted = plotRows(svg, chosen.passing(), data, marks, chosen);
    note.textContent = plotted.note;
    markChosen(place, current);
    return plotted.count;
  }
  function show(key) {
    current = key;
    markChosen(place, key);
    dialog.show(key);
  }

  place.querySelector(".controls").append(...chosen.elements, make("div", { className: "status" }, status, clear));
  place.append(note, table.element);
  document.body.append(dialog.element);
  makeChoosable(svg, show);
  chosen.enter();
  new ResizeObserver(plot).observe(place);
}

const json = document.getElementById("entries");
if (json) explore(document.getElementById("explorer"), JSON.parse(json.textContent));
