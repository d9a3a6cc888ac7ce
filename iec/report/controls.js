// Menus, boxes to check, and a table that its headings sort.

function menu(options) {
  return fill(make("select"), options);
}
function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value: String(value), textContent: text })));
  return select;
}

// A small picture of a mark.
function swatch(mark) {
  const chart = document.querySelector("#explorer .chart");
  return draw(chart, "svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" }, symbol(chart, mark, 5));
}

// A box to check for each value; none checked means all. mark: of a value, or null.
function chips(facet, chosen, mark, changed) {
  const counts = facet.values.map(() => make("small"));
  const labels = facet.values.map((name, value) => {
    const box = make("input", { type: "checkbox" });
    box.addEventListener("change", () => { chosen[box.checked ? "add" : "delete"](value); changed(); });
    const look = mark(value);
    return make("label", { className: "chip" }, box, ...(look ? [swatch(look)] : []), name, counts[value]);
  });
  const count = (all, values) => counts.forEach((place, value) => {
    const number = values.filter((own) => own === value).length;
    place.textContent = number;
    labels[value].hidden = !all.includes(value);
    labels[value].classList.toggle("empty", !number);
    labels[value].querySelector("input").checked = chosen.has(value);
  });
  return { element: make("fieldset", {}, make("legend", { textContent: facet.name }), ...labels), count };
}

// Columns: {name, value(row), text(row), words}; a heading sorts by its column. pick: called with the key of a chosen row.
function sortableTable(pick) {
  const head = make("tr");
  const body = make("tbody");
  const scroll = make("div", { className: "scroll tall", tabIndex: 0, role: "region", ariaLabel: "All rows" },
    make("table", {}, make("thead", {}, head), body));
  let columns = [];
  let rows = [];
  let order = { name: "", sign: 1 };

  function redraw() {
    [...head.children].forEach((heading, k) => {
      const sorted = columns[k].name === order.name;
      heading.setAttribute("aria-sort", !sorted ? "none" : order.sign > 0 ? "ascending" : "descending");
    });
    const column = columns.find((own) => own.name === order.name);
    const sorted = column ? [...rows].sort((a, b) => order.sign * compare(column.value(a), column.value(b), order.sign)) : rows;
    body.replaceChildren(...sorted.map(line));
  }
  function line(row) {
    const button = make("button", { type: "button", className: "row", textContent: row.label });
    const cells = columns.slice(1).map((column) => {
      const [value, ...rest] = column.text(row).split(" [");
      const interval = rest.map((text) => make("small", { textContent: `[${text}` }));
      return make("td", { className: column.words ? "words" : "" }, value, ...interval);
    });
    const element = make("tr", { onclick: () => pick(row.key) }, make("th", { scope: "row" }, button), ...cells);
    element.dataset.key = row.key;
    return element;
  }
  function sort(name) {
    order = { name, sign: order.name === name ? -order.sign : 1 };
    redraw();
  }
  function fill(given, shown) {
    if (given.map((column) => column.name).join("\n") !== columns.map((column) => column.name).join("\n")) {
      head.replaceChildren(...given.map(({ name, words }) =>
        make("th", { scope: "col", className: words ? "words" : "" },
          make("button", { type: "button", className: "sort", textContent: name, onclick: () => sort(name) }))));
    }
    [columns, rows] = [given, shown];
    redraw();
  }
  return { element: scroll, fill };
}

// Values that are not there come last, whatever the sign of the order.
function compare(a, b, sign) {
  if (a === null || b === null) return a === b ? 0 : sign * (a === null ? 1 : -1);
  return typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a === b ? 0 : a - b;
}
