"use strict";

const EVERY_MS = 2000;
let live = document.getElementById("live");

// Shows the pictures that the menu names, hides the others.
function choose() {
  const menu = live.querySelector("select[data-control]");
  if (!menu) return;
  for (const part of live.querySelectorAll("[data-moment]")) {
    part.classList.toggle("off", part.dataset.moment !== menu.value);
  }
}

// What a reader has chosen and opened, to be the same once the page is new; the latest stays the latest.
function state() {
  const menu = live.querySelector("select[data-control]");
  const open = [...live.querySelectorAll("details[open][data-keep]")].map((one) => one.dataset.keep);
  return { chosen: menu && menu.selectedIndex > 0 ? menu.value : null, open };
}

function restore({ chosen, open }) {
  const menu = live.querySelector("select[data-control]");
  if (menu && chosen && [...menu.options].some((option) => option.value === chosen)) menu.value = chosen;
  for (const one of live.querySelectorAll("details[data-keep]")) one.open = open.includes(one.dataset.keep);
  choose();
}

async function refresh() {
  const told = await fetch("version", { cache: "no-store" });
  if (!told.ok || (await told.text()) === live.dataset.version) return;
  const answer = await fetch("./", { cache: "no-store" });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const [fresh, kept, focused] = [page.getElementById("live"), state(), document.activeElement];
  if (!fresh || (focused && focused.matches("select"))) return;
  live.replaceWith(document.adoptNode(fresh));
  live = fresh;
  document.title = page.title;
  restore(kept);
}

async function follow() {
  try {
    await refresh();
  } catch {
    document.title = "not served any more";
  }
  setTimeout(follow, EVERY_MS);
}

document.addEventListener("change", choose);
choose();
follow();
