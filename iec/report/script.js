"use strict";
// Without this script every image is on the page; it lays two rows of the same seeds over each other.
document.documentElement.classList.add("js");

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// A button that shows one of two figures' images. Pointing at it with a mouse changes to the other; a click or a tap stays.
function flip(figures) {
  const images = figures.map((figure) => figure.querySelector("img").cloneNode());
  const tags = figures.map((figure) => make("span", { textContent: figure.dataset.label }));
  const button = make("button", { type: "button", className: "flip" }, ...images, make("span", { className: "tags" }, ...tags));
  let pressed = false;
  let pointed = false;
  function draw() {
    const shown = pressed !== pointed ? 1 : 0;
    images.forEach((image, k) => image.classList.toggle("hidden", k !== shown));
    tags.forEach((tag, k) => tag.classList.toggle("shown", k === shown));
    button.setAttribute("aria-pressed", String(pressed));
  }
  button.press = (value) => { pressed = value; draw(); };
  button.addEventListener("click", () => button.press(!pressed));
  for (const [name, value] of [["pointerenter", true], ["pointerleave", false]]) {
    button.addEventListener(name, (event) => { if (event.pointerType === "mouse") { pointed = value; draw(); } });
  }
  draw();
  return button;
}

// Two menus of rows, and a button that changes between the two that are chosen: first those of the given index, and another.
function comparison(figures, first) {
  const place = make("div");
  const second = first === 0 ? Math.min(2, figures.length - 1) : 1;
  const menus = [first, second].map((chosen) => {
    const options = figures.map((figure, k) => make("option", { value: String(k), textContent: figure.dataset.label }));
    const menu = make("select", {}, ...options);
    menu.selectedIndex = chosen;
    return menu;
  });
  const draw = () => place.replaceChildren(flip(menus.map((menu) => figures[menu.selectedIndex])));
  menus.forEach((menu) => menu.addEventListener("change", draw));
  draw();
  const labels = menus.map((menu, k) => make("label", {}, k ? "with" : "Compare", menu));
  return make("div", { className: "compare" }, make("div", { className: "choose" }, ...labels), place);
}

// Images by section and label, taken before they are laid over each other.
const samples = new Map([...document.querySelectorAll("figure.cell")].map(
  (figure) => [`${figure.closest("section").id}/${figure.dataset.label}`, figure.querySelector("img")]));

for (const gallery of document.querySelectorAll(".gallery")) {
  const figures = [...gallery.querySelectorAll(".cell")];
  const buttons = [...gallery.querySelectorAll(".family")].flatMap((family) => {
    const [plain, ...corrected] = family.children;
    const own = corrected.map((figure) => flip([plain, figure]));
    family.replaceChildren(...own);
    return own;
  });
  if (buttons.length > 1) {
    const all = make("button", { type: "button", className: "all", textContent: "All corrected" });
    all.setAttribute("aria-pressed", "false");
    all.addEventListener("click", () => {
      const value = all.getAttribute("aria-pressed") !== "true";
      all.setAttribute("aria-pressed", String(value));
      buttons.forEach((button) => button.press(value));
    });
    gallery.querySelector(".grids").before(all);
  }
  const alone = gallery.querySelector(".alone");
  if (alone && figures.length > 1) alone.before(comparison(figures, figures.indexOf(alone.querySelector(".cell"))));
}

// A row's label leads to where its numbers come from, which has to be open to be seen.
function open() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.parentElement.tagName === "DETAILS") {
    target.parentElement.open = true;
    target.parentElement.scrollIntoView();
  }
}
addEventListener("hashchange", open);
open();
