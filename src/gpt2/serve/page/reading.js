// The views of a given text: where the model is surprised, and what happens inside it.

import { ask, eventsOf, statusLine } from "./api.js";
import { insideViews } from "./inside/analysis.js";
import { compareView } from "./inside/compare.js";
import { readView } from "./inside/read.js";
import { make, nextTask, phrase, selectionOf, unpacked } from "./inside/shared.js";

// Most characters of a text that a remark quotes.
const QUOTED = 60;

// What these views share: a text, a button that starts and stops, and the place of the result.
// page: { model(), models, changed() }. more(): what the result is about besides the model and the text, by name.
// compute(subject, signal, status) returns what shows the result in a container; the subject has `model`, `text` and those.
// reason(model): why a model has no such view, or null.
export function textView(container, page, { name, action, about, fields, more = () => ({}), compute, reason = () => null }) {
  const status = statusLine(), result = make("div", { class: "result" });
  const text = make("textarea", { id: `${name}-text`, rows: 5, dir: "auto", spellcheck: "false", placeholder: "Text to read", oninput: page.changed });
  const go = make("button", { type: "button", class: "main", onclick: () => (running ? running.abort() : start()) }, action);
  const progress = make("progress", { hidden: true, "aria-label": "Progress" });
  const model = make("p", { class: "warning", hidden: true }), outdated = make("p", { class: "outdated", hidden: true, role: "status" });
  let running = null, token = null, shown = null;
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); start(); }
  });
  container.addEventListener("input", tell);
  container.append(make("p", { class: "none" }, about), model, make("div", { class: "asking" }, make("label", { for: `${name}-text` }, "Text"), text, ...fields,
    make("div", { class: "buttons" }, go, status.element), progress), outdated, result);

  const wanted = () => ({ model: page.model().id, text: text.value, ...more() });

  // Says that the result is of something else than the fields, where it is. What was wrong with them may be so no more.
  function tell() {
    if (!running) status.say("");
    outdated.hidden = !shown || Object.entries(wanted()).every(([field, value]) => shown[field] === value);
    if (outdated.hidden) return;
    const begun = shown.text.length > QUOTED ? `${shown.text.slice(0, QUOTED)}…` : shown.text;
    outdated.textContent = `The fields have changed. The result below is still that of ${modelsOf(shown)} for the text ${phrase(begun)}.`;
  }

  // Computes and shows what the fields say, or what `given` says instead. chosen: the token to choose.
  async function start(chosen = null, given = {}) {
    running?.abort();
    const own = running = new AbortController(), subject = { ...wanted(), ...given };
    go.textContent = "Stop";
    status.say("Waiting for the model …");
    try {
      const show = await compute(subject, own.signal, {
        say: status.say,
        fail: status.fail,
        progress(done, total) { progress.hidden = running !== own; progress.max = total; progress.value = done; },
      });
      await nextTask();
      own.signal.throwIfAborted();
      const place = make("div");
      result.replaceChildren(make("h2", { class: "whose" }, `Result of ${modelsOf(subject)}`), place);
      token = null;
      shown = subject;
      tell();
      await show(place, (count) => {
        const selection = selectionOf(count);
        if (chosen !== null) selection.choose(chosen);
        selection.listen((other) => { token = other; page.changed(); });
        return selection;
      });
      status.say("");
    } catch (error) {
      if (running === own) status.fail(error);
      if (running === own && error.name === "AbortError") status.say("Stopped.");
    } finally {
      if (running === own) {
        running = null;
        go.textContent = action;
        progress.hidden = true;
        page.changed();
      }
    }
  }

  return {
    start,
    text,
    token: () => token,
    // What the result is of; null where there is none.
    shown: () => shown,
    give(other) {
      text.value = other;
      tell();
    },
    // Follows the chosen model, and says where it cannot be read.
    check() {
      const why = reason(page.model());
      go.disabled = !page.model().inside || why !== null;
      model.hidden = !go.disabled;
      model.textContent = why ?? `The matrices of ${page.model().id} are not in float32, and these views need its plain weights. `
        + "Start gpt2 serve without --dtype and --quantize to look inside.";
      tell();
    },
  };
}

function modelsOf({ model, compare }) {
  return compare ? `${model} and ${nameOf(compare)}` : model;
}

// The value of an option: the name of a model, or 8@NAME for step 8 of its run. Returns { model, step }, without a step
// for a model itself, or null for what `models` do not have.
export function comparable(value, models) {
  if (models.some(({ id }) => id === value)) return { model: value };
  const [, step, model] = /^(\d+)@(.*)$/s.exec(value) ?? [];
  return models.some(({ id, steps }) => id === model && steps?.includes(+step)) ? { model, step: +step } : null;
}

// What the server calls it.
export function nameOf(value) {
  return value.replace(/^(\d+)@(.*)$/s, "$2, step $1");
}

// Where the model is surprised; with another model, both next to each other.
export function readTab(container, page) {
  const others = make("select", { id: "compare", onchange: page.changed });
  const field = make("p", { class: "field" }, make("label", { for: "compare" }, "Compare with"), others);
  const view = textView(container, page, {
    name: "read", action: "Read", about: "The loss of each token of a text, and what the model expected instead.", fields: [field],
    more: () => ({ compare: others.value }),
    async compute({ text, model: own, compare }, signal) {
      const found = [], both = [{ model: own }, ...(compare ? [comparable(compare, page.models)] : [])];
      for (const one of both) found.push(unpacked(await (await ask("inside/read", { ...one, text }, signal)).json()));
      return (place, selectionFor) => {
        const selection = selectionFor(found[0].ids.length);
        if (found.length === 1) readView(found[0], place, selection);
        else compareView(found, place, selection);
      };
    },
  });
  return {
    ...view,
    check() {
      const before = others.value, { id: own, inside, steps } = page.model();
      const values = page.models.filter((model) => model.inside && model.id !== own).map(({ id }) => id);
      if (inside && steps) values.push(...steps.map((step) => `${step}@${own}`));
      others.replaceChildren(make("option", { value: "" }, "no other model"), ...values.map((value) => make("option", { value }, nameOf(value))));
      others.value = values.includes(before) || !before ? before : values[0] ?? "";
      field.hidden = values.length === 0;
      view.check();
    },
    compareWith: (model) => { others.value = model; if (others.selectedIndex < 0) others.value = ""; },
    comparedWith: () => others.value,
  };
}

// Attention, logit lens, attribution, and patching where there is a second text.
export function insideTab(container, page) {
  const against = make("textarea", { id: "against", rows: 2, dir: "auto", spellcheck: "false", oninput: page.changed,
    placeholder: "For patching, a text of the same number of tokens; may be empty" });
  const parts = { losses: "losses", "positions of the lens": "logit lens", "batches of patching": "patching" };
  const view = textView(container, page, {
    name: "inside", action: "Look inside", about: "What the model computes on the way to the prediction of each token of a text.",
    fields: [make("label", { for: "against" }, "Second text"), against],
    more: () => ({ against: against.value }),
    async compute(subject, signal, { say, progress }) {
      const body = { ...requested(subject, page.models), stream: true };
      let last = null;
      for await (const event of eventsOf(await ask("inside/analysis", body, signal))) {
        last = event;
        if (!event.progress) continue;
        const { part, done, total } = event.progress;
        say(`Computing: ${parts[part] ?? part} …`);
        progress(done, total);
      }
      await nextTask();
      const data = unpacked(last);
      await nextTask();
      return async (place, selectionFor) => {
        for (const _ of insideViews(data, place, selectionFor(data.ids.length))) await nextTask();
      };
    },
  });
  return { ...view, against };
}

// The body of a request for an analysis of a subject.
export function requested({ compare, against, ...subject }, models) {
  const other = compare ? comparable(compare, models) : null;
  return { ...subject, ...(other ? { compare: other.model, compare_step: other.step } : {}), ...(against ? { against } : {}) };
}
