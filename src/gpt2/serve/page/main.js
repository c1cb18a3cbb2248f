// The page of `gpt2 serve`: tabs to write with a model, to read a text with it, to look inside it, and to see how it learned.

import { ask, statusLine } from "./api.js";
import { make } from "./inside/shared.js";
import { packed, partsOf, unpackedState } from "./link.js";
import { comparable, insideTab, nameOf, readTab, requested } from "./reading.js";
import { download, stillPage } from "./save.js";
import { timeTab } from "./time.js";
import { writeView } from "./write.js";

const TABS = ["Write", "Read", "Inside", "Time"];
// Time after the last change before the address follows, in milliseconds.
const SETTLED = 300;

async function start() {
  const main = document.getElementById("page"), status = statusLine();
  const models = make("select", { id: "model", onchange: () => { modelChanged(); changed(); } });
  const name = make("h1", {}, "gpt2"), field = make("p", { class: "field" }, make("label", { for: "model" }, "Model"), models);
  const save = make("button", { type: "button", disabled: true, onclick: saveView }, "Save as a file");
  const copy = make("button", { type: "button", disabled: true, onclick: copyLink }, "Copy link");
  main.append(make("header", { class: "top" }, name, field, make("div", { class: "buttons" }, copy, save)), status.element);
  let found;
  try {
    found = (await (await ask("v1/models")).json()).data;
  } catch (error) {
    return status.fail(new Error(`${error.message} Load the page again to try it again.`));
  }
  models.append(...found.map(({ id }) => make("option", { value: id }, id)));
  const page = { models: found, model: () => found.find(({ id }) => id === models.value), changed };
  const tabs = tabbed(main, () => { carryText(); changed(); });
  const write = writeView(tabs.panels.Write, page), read = readTab(tabs.panels.Read, page), inside = insideTab(tabs.panels.Inside, page);
  const time = timeTab(tabs.panels.Time, page), readers = [read, inside, time];
  // The views of a text have the same one.
  const giveText = (text) => { for (const tab of readers) if (tab.text.value !== text) tab.give(text); };
  for (const { text } of readers) text.addEventListener("input", () => giveText(text.value));
  const isServed = (id) => found.some((model) => model.id === id);
  let timer = null, isRestoring = false;
  for (const button of [save, copy]) button.disabled = false; // the views that they are about are there now

  function modelChanged() {
    const model = page.model();
    write.limit(model.max_model_len);
    for (const tab of readers) tab.check();
  }

  // A text that was written can be read without typing it again.
  function carryText() {
    if (tabs.open() === "Write" || read.text.value) return;
    giveText(write.text());
  }

  function changed() {
    if (!isRestoring) status.say("");
    clearTimeout(timer);
    if (!isRestoring) timer = setTimeout(follow, SETTLED);
  }

  // Writes the state into the address, unless another address was opened since it changed.
  async function follow() {
    const before = location.hash, address = await fragment();
    if (!isRestoring && location.hash === before) history.replaceState(null, "", address);
  }

  function opened() {
    return { Write: write, Read: read, Inside: inside, Time: time }[tabs.open()];
  }

  async function fragment() {
    const view = opened(), token = view.token();
    const state = { model: models.value, ...write.state(), text: read.text.value, against: inside.against.value,
      compare: read.comparedWith(), step: time.step(), shown: view === write ? null : view.shown() };
    return `#${tabs.open()}/${token ?? ""}/${await packed(state)}`;
  }

  // What a link says that a result is of, without models that are not served here.
  function served({ model, compare, ...rest }) {
    return { ...rest, ...(isServed(model) ? { model } : {}), ...(compare === "" || (compare && comparable(compare, found)) ? { compare } : {}) };
  }

  async function restore() {
    const { tab, token, state } = partsOf(location.hash);
    isRestoring = true;
    clearTimeout(timer);
    try {
      const given = state === null ? {} : await unpackedState(state);
      if (isServed(given.model)) models.value = given.model;
      const named = [given.model, given.shown?.model, given.shown?.compare, ...(given.branches ?? []).map(({ run }) => run?.model)];
      const missing = [...new Set(named)].filter((id) => id && !comparable(id, found)).map(nameOf);
      if (missing.length) status.say(`Not served here: ${missing.join(", ")}. ${models.value} is used instead.`);
      modelChanged();
      giveText(given.text ?? "");
      time.stepTo(Number.isInteger(given.step) ? given.step : null);
      inside.against.value = given.against ?? "";
      read.compareWith(given.compare ?? found.find(({ id, inside: isPlain }) => isPlain && id !== models.value)?.id ?? "");
      tabs.show(TABS.includes(tab) ? tab : "Write");
      const view = opened();
      await write.restore(given, view === write ? token : null);
      if (given.shown && view !== write) await view.start(token, served(given.shown));
    } catch (error) {
      status.fail(error);
    } finally {
      isRestoring = false;
    }
  }

  async function copyLink() {
    const address = new URL(await fragment(), location.href).href;
    history.replaceState(null, "", address);
    try {
      await navigator.clipboard.writeText(address);
      status.say("The link is copied.");
    } catch {
      const shown = make("input", { readonly: true, value: address, "aria-label": "Link", class: "link" });
      status.element.replaceChildren("This browser copies only by hand: ", shown);
      shown.select();
    }
  }

  async function saveView() {
    try {
      const view = opened(), shown = view === write ? write.still() : view.shown();
      if (!shown) throw new Error("Nothing is shown yet, so there is nothing to save.");
      if (view === write) return download("written.html", await stillPage(`${shown.model} · gpt2`, shown.elements));
      status.say("Computing the file …");
      download("lens.html", await (await ask("inside/page", requested(shown, found))).text());
      status.say("");
    } catch (error) {
      status.fail(error);
    }
  }

  await restore();
  addEventListener("hashchange", restore);
}

// Tabs of which one is shown: its name is `open()`.
function tabbed(container, opened) {
  const list = make("div", { class: "tabs", role: "tablist", "aria-label": "Views" }), panels = {}, buttons = {};
  let shown = TABS[0];
  const show = (name) => {
    shown = name;
    for (const other of TABS) {
      panels[other].hidden = other !== name;
      buttons[other].setAttribute("aria-selected", other === name ? "true" : "false");
      buttons[other].tabIndex = other === name ? 0 : -1;
    }
  };
  for (const [i, name] of TABS.entries()) {
    panels[name] = make("div", { id: `view-${name}`, role: "tabpanel", "aria-labelledby": `tab-${name}` });
    buttons[name] = make("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `view-${name}`,
      onclick: () => { show(name); opened(); },
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: TABS.length - 1 }[event.key];
        if (!step) return;
        const next = TABS[(i + step) % TABS.length];
        show(next);
        buttons[next].focus();
        opened();
      } }, name);
    list.append(buttons[name]);
  }
  container.append(list, ...Object.values(panels));
  show(shown);
  return { panels, show, open: () => shown };
}

start();
