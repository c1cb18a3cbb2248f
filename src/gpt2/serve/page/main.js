// The page of `gpt2 serve`: tabs to write with a model, to read a text with it, to look inside it, and to see how it learned.

import { ask, statusLine } from "./api.js";
import { make } from "./inside/shared.js";
import { packed, partsOf, unpackedState } from "./link.js";
import { insideTab, readTab, requested } from "./reading.js";
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
  const save = make("button", { type: "button", onclick: saveView }, "Save as a file");
  const copy = make("button", { type: "button", onclick: copyLink }, "Copy link");
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
  const giveText = (text) => { for (const { text: field } of readers) if (field.value !== text) field.value = text; };
  for (const { text } of readers) text.addEventListener("input", () => giveText(text.value));
  let timer = null, isRestoring = false;

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
    clearTimeout(timer);
    if (!isRestoring) timer = setTimeout(async () => history.replaceState(null, "", await fragment()), SETTLED);
  }

  async function fragment() {
    const tab = tabs.open(), view = { Write: write, Read: read, Inside: inside, Time: time }[tab], token = view.token();
    const state = { model: models.value, ...write.state(), text: read.text.value, against: inside.against.value,
      compare: read.comparedWith(), step: time.step(), shown: tab !== "Write" && view.isShown() };
    return `#${tab}/${token ?? ""}/${await packed(state)}`;
  }

  async function restore() {
    const { tab, token, state } = partsOf(location.hash);
    isRestoring = true;
    try {
      const given = state === null ? {} : await unpackedState(state);
      const isServed = found.some(({ id }) => id === given.model);
      if (given.model && !isServed) status.say(`${given.model} is not served here, so ${models.value} is used.`);
      if (isServed) models.value = given.model;
      modelChanged();
      giveText(given.text ?? "");
      time.stepTo(Number.isInteger(given.step) ? given.step : null);
      inside.against.value = given.against ?? "";
      read.compareWith(given.compare ?? found.find(({ id, inside: isPlain }) => isPlain && id !== models.value)?.id ?? "");
      tabs.show(TABS.includes(tab) ? tab : "Write");
      const opened = tabs.open();
      await write.restore(given, opened === "Write" ? token : null);
      if (given.shown && opened === "Read") await read.start(token);
      if (given.shown && opened === "Inside") await inside.start(token);
      if (given.shown && opened === "Time") await time.start(token);
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
      const tab = tabs.open();
      if (tab === "Write") {
        const elements = write.still();
        if (!elements) throw new Error("Nothing is written yet.");
        return download("written.html", await stillPage(`${page.model().id} · gpt2`, elements));
      }
      status.say("Computing the file …");
      const body = tab === "Time" ? { model: page.model().id, text: time.text.value, step: time.step() ?? undefined }
        : requested(page, read.text.value, inside.against.value);
      download("lens.html", await (await ask("inside/page", body)).text());
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
