// A plot of scores against a cost, with the markers of the other plots.
// Marker, by matplotlib's letter -> [corners, how deep the inner corners of a star lie (1: a polygon), turn in degrees].
const SHAPES = {
  o: [24, 1, 0], s: [4, 1, 45], "^": [3, 1, 0], D: [4, 1, 0], v: [3, 1, 180], P: [4, 0.5, 0], "*": [5, 0.45, 0], X: [4, 0.5, 45],
  "<": [3, 1, 270], ">": [3, 1, 90], p: [5, 1, 0], d: [2, 0.5, 0], h: [6, 1, 0], 8: [8, 1, 22.5],
};

function outline(marker, radius) {
  const [corners, depth, turn] = SHAPES[marker];
  const count = depth < 1 ? 2 * corners : corners;
  const places = Array.from({ length: count }, (_, k) => {
    const angle = Math.PI * ((2 * k) / count + turn / 180 - 0.5);
    const length = radius * (depth < 1 && k % 2 ? depth : 1);
    return `${(length * Math.cos(angle)).toFixed(2)},${(length * Math.sin(angle)).toFixed(2)}`;
  });
  return `M${places.join("L")}Z`;
}

function draw(svg, tag, attributes, ...children) {
  const element = document.createElementNS(svg.namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function symbol(svg, { colour, marker, filled, grey }, radius) {
  const names = ["symbol", ...(filled ? [] : ["hollow"]), ...(grey ? ["grey"] : [])];
  const path = draw(svg, "path", { d: outline(marker, radius), class: names.join(" ") });
  path.style.setProperty("--hue", colour);
  return path;
}

// Round numbers from low to high, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
}

// 1, 2 and 5 times the powers of ten, or these alone, where they fit, else round numbers.
function logTicks(low, high, count) {
  const powers = ticks(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)), 99).filter(Number.isInteger);
  const times = (factors) => powers.flatMap((power) => factors.map((factor) => Number((factor * 10 ** power).toPrecision(6))))
    .filter((value) => value >= low && value <= high);
  const fitting = [[1, 2, 5], [1, 3], [1]].map(times).find((found) => found.length >= 2 && found.length <= count);
  return fitting ?? ticks(low, high, Math.min(count, 4));
}

// Those of the points that beat every one of the same or a lower cost, by rising cost.
function front(points, higher) {
  const sign = higher ? -1 : 1;
  const best = [];
  for (const point of [...points].sort((a, b) => a.x - b.x || sign * (a.y - b.y))) {
    if (!best.length || sign * point.y < sign * best[best.length - 1].y) best.push(point);
  }
  return best;
}

// points: {key, x > 0, y, low, high, colour, marker, filled, grey, outside (of the front), base: key or null, name}.
function drawChart(svg, points, { higher, xlabel, ylabel }) {
  const width = svg.clientWidth;
  const height = Math.min(420, Math.max(280, width * 0.55));
  const edge = { left: 56, right: 14, top: 26, bottom: 42 };
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  svg.replaceChildren();
  if (!points.length) return;
  const [x0, x1] = padded(points.map((point) => Math.log(point.x)));
  const [y0, y1] = padded(points.flatMap((point) => [point.y, point.low ?? point.y, point.high ?? point.y]));
  const x = (value) => edge.left + ((Math.log(value) - x0) / (x1 - x0)) * (width - edge.left - edge.right);
  const y = (value) => height - edge.bottom - ((value - y0) / (y1 - y0)) * (height - edge.top - edge.bottom);
  const add = (tag, attributes, ...children) => svg.append(draw(svg, tag, attributes, ...children));
  const line = (name, ...places) => add("polyline", { class: name, points: places.map((place) => place.join(",")).join(" ") });
  for (const value of logTicks(Math.exp(x0), Math.exp(x1), width / 60)) {
    line("gridline", [x(value), edge.top], [x(value), height - edge.bottom]);
    add("text", { x: x(value), y: height - edge.bottom + 16, "text-anchor": "middle" }, String(value));
  }
  for (const value of ticks(y0, y1, height / 60)) {
    line("gridline", [edge.left, y(value)], [width - edge.right, y(value)]);
    add("text", { x: edge.left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value));
  }
  add("text", { x: width - edge.right, y: height - 6, "text-anchor": "end", class: "name" }, `${xlabel} →`);
  add("text", { x: 4, y: 14, class: "name" }, `↑ ${ylabel}`);
  const best = front(points.filter((point) => !point.outside), higher);
  line("front", ...best.flatMap((point, k) => [...(k ? [[x(point.x), y(best[k - 1].y)]] : []), [x(point.x), y(point.y)]]));
  const places = new Map(points.map((point) => [point.key, point]));
  for (const point of points) {
    const base = places.get(point.base);
    if (base) line("link", [x(base.x), y(base.y)], [x(point.x), y(point.y)]);
    if (point.low !== null) line("interval", [x(point.x), y(point.low)], [x(point.x), y(point.high)]);
  }
  const keys = new Set(best.map((point) => point.key));
  for (const point of [...points].sort((a, b) => a.x - b.x)) {
    const name = keys.has(point.key) ? `${point.name}, on the Pareto front` : point.name;
    const transform = `translate(${x(point.x).toFixed(1)} ${y(point.y).toFixed(1)})`;
    const ring = draw(svg, "circle", { r: 11, class: "ring" });
    const parts = [ring, symbol(svg, point, width < 500 ? 5 : 6), draw(svg, "title", {}, name)];
    add("g", { class: "point", transform, tabindex: -1, role: "button", "aria-label": name, "data-key": point.key }, ...parts);
  }
  svg.querySelector(".point").setAttribute("tabindex", 0);
}

function markChosen(parent, key) {
  for (const element of parent.querySelectorAll("[data-key]")) {
    element.classList.toggle("chosen", element.dataset.key === String(key));
  }
}

function padded(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = high > low ? (high - low) * 0.07 : Math.abs(high) * 0.1 || 1;
  return [low - room, high + room];
}

// A click chooses the nearest point; the arrow keys go from point to point, Enter and Space choose.
function makeChoosable(svg, choose) {
  svg.addEventListener("click", (event) => {
    const points = [...svg.querySelectorAll(".point")];
    const away = (point) => {
      const box = point.querySelector("path").getBoundingClientRect();
      return Math.hypot(event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2);
    };
    const near = points.reduce((best, point) => (best && away(best) <= away(point) ? best : point), null);
    if (near && away(near) < 24) choose(Number(near.dataset.key));
  });
  svg.addEventListener("keydown", (event) => {
    const points = [...svg.querySelectorAll(".point")];
    const place = points.indexOf(event.target);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (place < 0) return;
    if (step) {
      const next = points[(place + step + points.length) % points.length];
      points[place].setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      choose(Number(event.target.dataset.key));
    } else {
      return;
    }
    event.preventDefault();
  });
}
