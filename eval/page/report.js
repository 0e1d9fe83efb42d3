"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Shows the parts of the page marked data-NAME="key", hides those of other keys.
function show(name, key) {
  for (const part of all(`[data-${name}]`)) {
    part.classList.toggle("off", part.getAttribute(`data-${name}`) !== key);
  }
}

const slider = document.getElementById("steps");
if (slider) {
  const stops = [...slider.list.options].map((option) => option.label);
  const move = () => {
    const key = stops[slider.valueAsNumber];
    show("steps", key);
    slider.setAttribute("aria-valuetext", /^\d+$/.test(key) ? `${key} steps` : key);
    document.querySelector("output[for=steps]").value = key;
  };
  const follow = () => {
    const index = stops.indexOf(new URLSearchParams(location.hash.slice(1)).get("steps"));
    if (index >= 0) slider.value = index;
    move();
  };
  slider.addEventListener("input", () => {
    move();
    history.replaceState(null, "", `#steps=${stops[slider.valueAsNumber]}`);
  });
  addEventListener("hashchange", follow);
  follow();
}

for (const menu of all("select[data-control]")) {
  const choose = () => show(menu.dataset.control, menu.value);
  menu.addEventListener("change", choose);
  choose();
}

// The pictures of one seed light up together.
function highlight(event) {
  const item = event.target.closest("[data-item]")?.dataset.item;
  for (const cell of all("[data-item]")) cell.classList.toggle("same", cell.dataset.item === item);
}
document.getElementById("gallery")?.addEventListener("mouseover", highlight);
document.getElementById("gallery")?.addEventListener("mouseleave", highlight);

// Numbers by size, cells without a value last in either direction.
function compare(first, second, sign) {
  if (first === "" || second === "") return (first === "") - (second === "");
  return sign * (Number(first) - Number(second));
}

function sortBy(button) {
  const head = button.parentElement;
  const table = head.closest("table");
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of all("th[aria-sort]", table)) other.ariaSort = "none";
  head.ariaSort = sign > 0 ? "ascending" : "descending";
  const key = (line) => line.cells[head.cellIndex].dataset.value;
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((first, second) => compare(key(first), key(second), sign)));
}
for (const button of all(".sortable button")) button.addEventListener("click", () => sortBy(button));

addEventListener("beforeprint", () => {
  for (const folded of all("details")) folded.open = true;
});
