"use strict";
// Values under the pointer, or by arrow keys, in every chart; and, where the page is served, what is new in the run.

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
}

function show(plot, x) {
  const { x: [first, last], lines } = JSON.parse(plot.dataset.lines);
  const main = lines.reduce((a, b) => (b[2].length > a[2].length ? b : a))[2];
  const step = main[nearest(main, x)], share = (step - first) / (last - first);
  hide(plot);
  const cursor = Object.assign(document.createElement("div"), { className: "cursor" });
  cursor.style.left = 100 * share + "%";
  const tip = Object.assign(document.createElement("div"), { className: "tip" });
  tip.setAttribute("role", "status");
  tip.style[share < 0.5 ? "left" : "right"] = `calc(${100 * Math.min(share, 1 - share)}% + .5rem)`;
  tip.textContent = [`step ${step.toLocaleString("en")}`, ...lines.map(([name, , xs, ys]) => {
    const i = nearest(xs, step), isHere = Math.abs(xs[i] - step) < (last - first) / 200;
    const where = isHere ? "" : ` (step ${xs[i].toLocaleString("en")})`;
    return `${name} ${+ys[i].toPrecision(5)}${where}`;
  })].join("\n");
  plot.append(cursor, tip);
  plot.dataset.at = step;
}

function hide(plot) {
  for (const part of plot.querySelectorAll(".cursor, .tip")) part.remove();
}

document.addEventListener("pointermove", (event) => {
  const plot = event.target.closest?.(".plot");
  for (const other of document.querySelectorAll(".plot")) if (other !== plot && other !== document.activeElement) hide(other);
  if (!plot) return;
  const { left, width } = plot.getBoundingClientRect(), { x: [first, last] } = JSON.parse(plot.dataset.lines);
  show(plot, first + ((event.clientX - left) / width) * (last - first));
});

document.addEventListener("keydown", (event) => {
  const plot = event.target.closest?.(".plot");
  if (!plot) return;
  if (event.key === "Escape") return hide(plot);
  const { x: [first, last] } = JSON.parse(plot.dataset.lines), at = +(plot.dataset.at ?? last), by = (last - first) / 50;
  const to = { ArrowLeft: at - by, ArrowRight: at + by, Home: first, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  show(plot, Math.min(last, Math.max(first, to)));
});

document.addEventListener("focusout", (event) => event.target.matches?.(".plot") && hide(event.target));

let latest = null;

async function refresh() {
  if (!document.hidden) {
    try {
      const answer = await fetch("body");
      const text = await answer.text();
      document.documentElement.classList.toggle("lost", !answer.ok);
      if (answer.ok && text !== latest) replace(latest = text);
    } catch {
      document.documentElement.classList.add("lost");
    }
  }
  setTimeout(refresh, 3000);
}

// Only sections that changed are replaced, and none in which somebody reads values or selects text; what stands at the
// top of the window stays there.
function replace(text) {
  const topOf = (element) => element?.getBoundingClientRect().top;
  const held = [...document.querySelectorAll("[id]")].find((element) => topOf(element) >= 0)?.id;
  const heldAt = topOf(document.getElementById(held));
  const fresh = new DOMParser().parseFromString(`<main>${text}</main>`, "text/html").querySelector("main");
  const selected = getSelection().isCollapsed ? null : getSelection().anchorNode;
  const main = document.querySelector("main");
  [...fresh.children].forEach((section, place) => {
    const old = document.getElementById(section.id);
    if (!old) return main.insertBefore(section, main.children[place] ?? null);
    if (old.dataset.told === section.innerHTML || old.contains(selected) || old.querySelector(".tip")) return;
    const told = section.innerHTML;
    for (const part of old.querySelectorAll("details")) {
      const same = section.querySelector("#" + CSS.escape(part.id));
      if (same) same.open = part.open;
    }
    const focus = [...old.querySelectorAll("[tabindex], summary")].indexOf(document.activeElement);
    old.replaceChildren(...section.childNodes);
    old.dataset.told = told;
    if (focus >= 0) old.querySelectorAll("[tabindex], summary")[focus]?.focus({ preventScroll: true });
  });
  if (heldAt !== undefined) scrollBy({ top: topOf(document.getElementById(held)) - heldAt, behavior: "instant" });
}

if ("live" in document.documentElement.dataset) refresh();
