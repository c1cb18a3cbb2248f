// The view in which a model writes: a prompt, settings, the shaded text, alternatives of its tokens, and its branches.

import { ask, eventsOf, statusLine } from "./api.js";
import { allOf, branchOf, completing, ownerOf, tokensIn, tokensOf, treeView } from "./branches.js";
import { make } from "./inside/shared.js";
import { settingsView } from "./settings.js";
import { alternativesView, shadedText } from "./shaded.js";

const ALTERNATIVES = 5;
const ENDINGS = { stop: "end of text", length: "" };

// page: { model(), models, changed() }, where `changed` is called when the state is another one.
export function writeView(container, page) {
  let roots = [], current = null, chosen = null, hovered = null, running = null, unshown = [];
  const prompt = make("textarea", { id: "prompt", rows: 5, dir: "auto", spellcheck: "false", placeholder: "Text to continue; may be empty", oninput: page.changed });
  const settings = settingsView(), status = statusLine();
  const go = make("button", { type: "button", class: "main", onclick: () => (running ? running.abort() : write()) }, "Write");
  const more = make("button", { type: "button", hidden: true, onclick: () => extend() }, "Continue");
  const panel = make("div", { class: "panel" }), tree = make("div"), branches = make("section", { hidden: true }, make("h2", {}, "Branches"), tree);
  const text = shadedText("The text, token by token; arrow keys choose one, Enter shows others instead of it", {
    choose, hover: (index) => { hovered = index; showPanel(); },
    enter: () => panel.querySelector(".alternatives button")?.focus(),
    take: (number) => take(chosen, tokensOf(current)[chosen].top[number]),
  });
  const whose = make("h2", { class: "whose" }), written = make("div", { class: "output", hidden: true }, whose, text.legend(), text.element);
  const side = make("div", { class: "side", hidden: true }, panel, branches);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); write(); }
  });
  container.append(make("div", { class: "write" },
    make("div", { class: "asking" }, make("label", { for: "prompt" }, "Prompt"), prompt,
      make("div", { class: "buttons" }, go, more, status.element)),
    settings.element, written, side));

  // Shows a branch, with no token chosen.
  function show(branch) {
    unshown = [];
    current = branch;
    chosen = hovered = null;
    if (running === null) status.say(""); // it was about another branch
    for (const element of [written, side]) element.hidden = branch === null;
    more.hidden = branch === null || running !== null;
    whose.textContent = branch ? `Written by ${branch.run.model}` : "";
    if (branch) text.show(branch.run.prompt, tokensOf(branch));
    if (branch) text.end(ENDINGS[branch.ending] ?? "");
    showPanel();
    showTree();
  }

  function showTree() {
    const hasFocus = tree.contains(document.activeElement);
    branches.hidden = !roots.length;
    tree.replaceChildren(treeView(roots, current, (branch) => {
      running?.abort();
      show(branch);
      page.changed();
    }));
    if (hasFocus) tree.querySelector("[aria-current]")?.focus();
  }

  function choose(index) {
    chosen = index;
    text.mark(index);
    showPanel();
    page.changed();
  }

  function showPanel() {
    const index = hovered ?? chosen, token = current && index !== null ? tokensOf(current)[index] : undefined;
    panel.replaceChildren(...(token ? alternativesView(token, index, { take: (other) => take(index, other), back: () => text.element.focus() })
      : [make("p", { class: "none" }, "Choose a token to see what else could be there. Another one in its place makes a new branch.")]));
  }

  // Tokens arrive one by one, and are shown together before the browser draws.
  function arrived(branch, tokens) {
    branch.tokens.push(...tokens);
    if (branch !== current) return;
    if (!unshown.length) requestAnimationFrame(showArrived);
    unshown.push(...tokens);
  }

  function showArrived() {
    text.add(unshown);
    unshown = [];
  }

  // Starts a text from the prompt.
  async function write() {
    await work(async (signal) => {
      settings.requireSeed();
      const model = page.model(), run = { prompt: prompt.value, model: model.id, settings: settings.values() };
      run.settings.seed ??= Math.floor(Math.random() * 1e9);
      run.ids = await idsOf(run, signal);
      roomAfter(run, 0);
      const branch = branchOf(null, 0, [], run);
      roots.push(branch);
      show(branch);
      await generate(branch, signal);
    });
  }

  // Takes another token at an index, and goes on from there.
  async function take(index, other) {
    if (index === null || !other) return;
    const tokens = tokensOf(current), owner = ownerOf(current, index), { run } = owner;
    if (tokens[index].id === other.id) return choose(index);
    const same = owner.children.find((child) => child.kept === index && child.tokens[0]?.id === other.id);
    running?.abort();
    if (same) { show(same); choose(index); return text.element.focus(); }
    await work(async (signal) => {
      roomAfter(run, index + 1);
      const token = { ...other, top: tokens[index].top };
      const branch = branchOf(owner, index, [token], { ...run, settings: { ...settings.values(), seed: run.settings.seed } });
      show(branch);
      choose(index);
      text.element.focus();
      await generate(branch, signal);
    });
  }

  // Adds tokens to the end of the branch that is shown.
  async function extend() {
    await work(async (signal) => {
      const branch = current;
      roomAfter(branch.run, tokensOf(branch).length);
      branch.ending = undefined;
      showTree();
      branch.run = { ...branch.run, settings: { ...settings.values(), seed: branch.run.settings.seed } };
      text.end("");
      await generate(branch, signal);
    });
  }

  // Does one thing that the button can stop; one that still runs is stopped first.
  async function work(action) {
    running?.abort();
    const own = running = new AbortController();
    go.textContent = "Stop";
    more.hidden = true;
    status.say("Waiting for the model …");
    try {
      await action(own.signal);
    } catch (error) {
      if (running === own) status.fail(error);
      if (running === own && error.name === "AbortError") status.say("Stopped.");
    } finally {
      if (running === own) {
        running = null;
        go.textContent = "Write";
        more.hidden = current === null;
        showTree();
        page.changed();
      }
    }
  }

  // The number of tokens that fit into the context after some new ones. Throws an Error where there is none.
  function roomAfter({ model, ids }, count) {
    const context = page.models.find(({ id }) => id === model).max_model_len, length = ids.length + count;
    if (length >= context) throw new Error(`The model sees ${context} tokens, and there are ${length} already.`);
    return context - length;
  }

  async function generate(branch, signal) {
    const { run } = branch, before = [...run.ids, ...tokensOf(branch).map(({ id }) => id)], began = performance.now();
    const room = roomAfter(run, before.length - run.ids.length);
    const { max_tokens: most, ...sampling } = run.settings;
    const body = { model: run.model, prompt: before, max_tokens: Math.min(most, room), ...sampling, stream: true, logprobs: ALTERNATIVES };
    let count = 0, ending = null;
    try {
      for await (const { choices: [choice] } of eventsOf(await ask("v1/completions", body, signal))) {
        const tokens = tokensIn(choice.logprobs);
        count += tokens.length;
        ending = choice.finish_reason;
        arrived(branch, tokens);
        if (branch === current) status.say(`${count} tokens …`);
      }
    } finally {
      branch.ending = ending;
      showTree();
    }
    showArrived();
    const passed = (performance.now() - began) / 1000, seconds = passed.toFixed(passed < 1 ? 2 : 1), full = room <= most ? " The model's context is full." : "";
    status.say(`${count} tokens in ${seconds} s, seed ${run.settings.seed}.${branch.ending === "stop" ? " The text has ended." : full}`);
    if (branch === current) text.end(ENDINGS[branch.ending] ?? "");
  }

  // The ids of a prompt. Those of an empty one are the server's choice, which an echo says.
  async function idsOf({ prompt: own, model }, signal) {
    if (own) return (await (await ask("tokenize", { model, prompt: own }, signal)).json()).tokens;
    return (await echo(model, "", signal)).map(({ id }) => id);
  }

  // The tokens of a prompt, text or ids, with what the model says about them.
  async function echo(model, own, signal) {
    const answer = await ask("v1/completions", { model, prompt: own, max_tokens: 0, echo: true, logprobs: ALTERNATIVES }, signal);
    return tokensIn((await answer.json()).choices[0].logprobs);
  }

  // The branches of a link, each after its parent: { parent (its number), kept, ids (of its own tokens), run }.
  async function restored(entries, signal) {
    const made = [], promptIds = new Map();
    for (const { parent, kept, ids, run: { prompt: own, model: name, settings: used } } of entries) {
      const model = page.models.some(({ id }) => id === name) ? name : page.model().id, key = JSON.stringify([own, model]);
      if (!promptIds.has(key)) promptIds.set(key, await idsOf({ prompt: own, model }, signal));
      const run = { prompt: own, model, settings: used, ids: promptIds.get(key) };
      const above = made[parent] ?? null, before = above ? tokensOf(above).slice(0, kept).map(({ id }) => id) : [];
      const tokens = ids.length ? (await echo(model, [...run.ids, ...before, ...ids], signal)).slice(run.ids.length + before.length) : [];
      made.push(Object.assign(branchOf(above, kept, tokens, run), { ending: null }));
    }
    return made;
  }

  container.addEventListener("input", status.excuse);
  show(null);
  return {
    go: () => write(),
    limit(context) {
      settings.limit(context);
      status.excuse();
    },
    // The text that is shown, for the other views.
    text() {
      const complete = completing();
      return current ? current.run.prompt + tokensOf(current).map(complete).join("") : prompt.value;
    },
    token: () => chosen,
    state() {
      const all = roots.flatMap((root) => [...allOf(root)]);
      return { prompt: prompt.value, settings: settings.values(), current: all.indexOf(current),
        branches: all.map(({ parent, kept, tokens, run: { ids, ...run } }) =>
          ({ parent: all.indexOf(parent), kept, ids: tokens.map(({ id }) => id), run })) };
    },
    // Shows the branches of a state instead of those that there are.
    async restore(state, token) {
      prompt.value = state.prompt ?? "";
      settings.set(state.settings ?? {});
      running?.abort();
      roots = [];
      show(null);
      if (!state.branches?.length) return;
      if (state.branches.some(({ run }) => !run)) throw new Error("The link is that of an older page, so its text cannot be restored.");
      await work(async (signal) => {
        const made = await restored(state.branches, signal);
        roots = made.filter(({ parent }) => parent === null);
        show(made[state.current] ?? made[0]);
        if (token !== null) choose(token);
        status.say(`${made.length === 1 ? "A text" : `${made.length} texts`} from the link.`);
      });
    },
    // The model and the text as elements of a page of its own; null where there is none.
    still: () => current && { model: current.run.model, elements: [make("h1", {}, current.run.model), make("p", { class: "none" },
      `Written by gpt2 with ${Object.entries(current.run.settings).map(([name, value]) => `${name} ${value}`).join(", ")}.`),
    text.legend(), stillText(text.element)] },
  };
}

// A copy of a shaded text without what can be done with it.
function stillText(element) {
  const copy = element.cloneNode(true);
  for (const one of [copy, ...copy.querySelectorAll("*")]) {
    for (const name of ["role", "tabindex", "id", "data-token", "aria-selected", "aria-activedescendant"]) one.removeAttribute(name);
    if (one.getAttribute("aria-label") && one !== copy) one.title = one.getAttribute("aria-label");
    one.removeAttribute("aria-label");
  }
  return copy;
}
