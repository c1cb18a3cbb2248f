"use strict";
// Shows the values under the pointer, or by arrow keys, in every chart; switches the x axis; and, where the page is
// served, fetches what is new in the run.

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
}

// The x value at a share of the axis' width, and the share of a value.
function scaleOf({ x: [first, last], log }) {
  return log
    ? { at: (share) => first * (last / first) ** share, share: (x) => Math.log(x / first) / Math.log(last / first) }
    : { at: (share) => first + share * (last - first), share: (x) => (x - first) / (last - first) };
}

function number(value) {
  return Number.isInteger(value) ? value.toLocaleString("en") : (+value.toPrecision(5)).toLocaleString("en");
}

function show(plot, x) {
  const data = JSON.parse(plot.dataset.lines), scale = scaleOf(data), several = data.lines.length > 6;
  const main = data.lines.reduce((a, b) => (b[2].length > a[2].length ? b : a))[2];
  const value = main[nearest(main, x)], share = scale.share(value);
  hide(plot);
  const cursor = Object.assign(document.createElement("div"), { className: "cursor" });
  cursor.style.left = 100 * share + "%";
  const tip = Object.assign(document.createElement("div"), { className: "tip" });
  tip.setAttribute("role", "status");
  tip.style[share < 0.5 ? "left" : "right"] = `calc(${100 * Math.min(share, 1 - share)}% + .5rem)`;
  const shown = data.lines.filter(([, kind]) => !several || !kind.startsWith("raw"));
  tip.textContent = [`${data.title} ${number(value)}`, ...shown.map(([name, , xs, ys]) => {
    const i = nearest(xs, value), isHere = Math.abs(scale.share(xs[i]) - share) < 1 / 200;
    return `${name} ${+ys[i].toPrecision(5)}${isHere ? "" : ` (at ${number(xs[i])})`}`;
  })].join("\n");
  plot.append(cursor, tip);
  plot.dataset.at = share;
}

function hide(plot) {
  for (const element of plot.querySelectorAll(".cursor, .tip")) element.remove();
}

function showAt(plot, share) {
  show(plot, scaleOf(JSON.parse(plot.dataset.lines)).at(Math.min(1, Math.max(0, share))));
}

document.addEventListener("pointermove", (event) => {
  const plot = event.target.closest?.(".plot[data-lines]");
  for (const other of document.querySelectorAll(".plot")) if (other !== plot && other !== document.activeElement) hide(other);
  if (!plot) return;
  const { left, width } = plot.getBoundingClientRect();
  showAt(plot, (event.clientX - left) / width);
});

document.addEventListener("keydown", (event) => {
  const plot = event.target.closest?.(".plot[data-lines]");
  if (!plot) return;
  if (event.key === "Escape") return hide(plot);
  const at = +(plot.dataset.at ?? 1);
  const to = { ArrowLeft: at - 0.02, ArrowRight: at + 0.02, Home: 0, End: 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  showAt(plot, to);
});

document.addEventListener("focusout", (event) => event.target.matches?.(".plot") && hide(event.target));

// Shows the chosen x axis. Each figure has its other drawings in templates; the first one is put into one too.
function chooseAxis(root, axis) {
  const radio = root.querySelector(`input[name=x][value=${axis}]`);
  if (!radio) return;
  radio.checked = true;
  for (const figure of root.querySelectorAll("figure:has(template)")) {
    const plot = figure.querySelector(".plot");
    if (!figure.querySelector("template[data-x=steps]")) {
      const template = document.createElement("template");
      template.dataset.x = "steps";
      hide(plot);
      template.content.append(plot.cloneNode(true));
      figure.append(template);
    }
    plot.replaceWith(figure.querySelector(`template[data-x=${axis}]`).content.cloneNode(true));
  }
}

function enableAxes(root) {
  for (const fieldset of root.querySelectorAll(".axes")) fieldset.hidden = false;
}

document.addEventListener("change", (event) => event.target.name === "x" && chooseAxis(document, event.target.value));
enableAxes(document);

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
  [...fresh.children].forEach((section, index) => {
    const old = document.getElementById(section.id);
    if (!old) return main.insertBefore(section, main.children[index] ?? null);
    if (old.dataset.received === section.innerHTML || old.contains(selected) || old.querySelector(".tip")) return;
    const received = section.innerHTML, axis = old.querySelector("input[name=x]:checked")?.value;
    enableAxes(section);
    if (axis && axis !== "steps") chooseAxis(section, axis);
    for (const detail of old.querySelectorAll("details")) {
      const same = section.querySelector("#" + CSS.escape(detail.id));
      if (same) same.open = detail.open;
    }
    const focus = [...old.querySelectorAll("[tabindex], summary, input")].indexOf(document.activeElement);
    old.replaceChildren(...section.childNodes);
    old.dataset.received = received;
    if (focus >= 0) old.querySelectorAll("[tabindex], summary, input")[focus]?.focus({ preventScroll: true });
  });
  if (heldAt !== undefined) scrollBy({ top: topOf(document.getElementById(held)) - heldAt, behavior: "instant" });
}

if ("live" in document.documentElement.dataset) refresh();
