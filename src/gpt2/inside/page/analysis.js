// All views of one analysis, in tabs that share the chosen token.

import { attentionView } from "./attention.js";
import { attributionView } from "./attribution.js";
import { compareView } from "./compare.js";
import { curveView, nearest } from "./curve.js";
import { lensView } from "./logit_lens.js";
import { patchingView } from "./patching.js";
import { readView } from "./read.js";
import { make, nextTask, selectionOf, tokenRow, tokenAt, quoted, unpacked } from "./shared.js";

// Shows an analysis, as `gpt2 lens --json` prints it but with packed arrays, in a container.
// The fragment of the address may name a tab and a token, as in page.html#Inside/12.
export function showAnalysis(packed, container) {
  const data = unpacked(packed), selection = selectionOf(data.ids.length);
  const views = { Read: make("div"), Inside: make("div"), ...(data.curve ? { Time: make("div") } : {}) };
  const tabs = make("div", { class: "tabs", role: "tablist", "aria-label": "Views" });
  const names = Object.keys(views), buttons = {};
  const open = (name) => {
    for (const other of names) {
      views[other].hidden = other !== name;
      buttons[other].setAttribute("aria-selected", other === name ? "true" : "false");
      buttons[other].tabIndex = other === name ? 0 : -1;
    }
    drawn(name);
  };
  for (const [i, name] of names.entries()) {
    Object.assign(views[name], { id: `view-${name}` });
    views[name].setAttribute("role", "tabpanel");
    views[name].setAttribute("aria-labelledby", `tab-${name}`);
    buttons[name] = make("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `view-${name}`,
      onclick: () => open(name),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: names.length - 1 }[event.key];
        if (!step) return;
        const next = names[(i + step) % names.length];
        open(next);
        buttons[next].focus();
      } }, name);
    tabs.append(buttons[name]);
  }
  container.append(tabs, ...Object.values(views));

  const made = new Set();
  // A view is made when it is first opened, because a hidden element has no size.
  async function drawn(name) {
    if (made.has(name)) return;
    made.add(name);
    await nextTask();
    if (name === "Time") timeView(data, views.Time, selection);
    else if (name === "Inside") {
      if (data.compared) views.Inside.append(make("p", { class: "none" }, `These views are those of ${data.model}.`));
      for (const _ of insideViews(data, views.Inside, selection)) await nextTask();
    } else if (data.compared) compareView([data, data.compared], views.Read, selection);
    else readView(data, views.Read, selection);
  }
  const [name, token] = location.hash.slice(1).split("/");
  if (/^\d+$/.test(token)) selection.choose(+token);
  open(names.includes(name) ? name : "Read");
}

// The loss of the text at each step of the run. The other views are about one of them, whatever is chosen here.
function timeView(data, container, selection) {
  container.append(make("p", { class: "none" }, `The other views are those of step ${data.step.toLocaleString("en")}.`));
  const { follow } = curveView(data.curve, container, { chosen: nearest(data.curve.steps, data.step), moved() {} });
  selection.listen((token) => follow(token, quoted(tokenAt(data, token))));
}

// Adds the views of what happens on the way to the prediction of one token. The browser may draw between two of them.
export function* insideViews(data, container, selection) {
  const row = tokenRow(data, selection, "The token that is predicted; arrow keys choose it", {
    look: (token) => ({ level: "", label: quoted(tokenAt(data, token)) }),
  });
  row.element.classList.add("chooser");
  const about = make("p", { class: "none" });
  selection.listen((token) => {
    about.textContent = token === 0 ? "The first token is not predicted."
      : `${data.patching ? "All views below except activation patching" : "All views below"} are about the prediction of ${token < data.ids.length ? quoted(tokenAt(data, token)) : "what comes next"}, `
        + `which is made after ${quoted(tokenAt(data, token - 1))}, at position ${token}.`;
  });
  container.append(make("div", { class: "sticky" }, row.element, about));
  const sections = { "Attention": attentionView, "Logit lens": lensView, "Attribution": attributionView };
  if (data.patching) sections["Activation patching"] = patchingView;
  for (const [title, view] of Object.entries(sections)) {
    const section = make("section", {}, make("h2", {}, title));
    container.append(section);
    view(data, section, selection);
    yield;
  }
}
