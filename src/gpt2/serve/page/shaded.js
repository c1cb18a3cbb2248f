// A written text as tokens that are shaded by their probability, of which one is chosen with the pointer or with keys.

import { completing, nameOf } from "./branches.js";
import { level, make, nodesOf, onOtherLine, percent, quoted, scaleLegend } from "./inside/shared.js";

// The probability with the strongest colour is 10 to the power of minus this.
const DECADES = 4;
// Distance in pixels from the end of the text at which a reader is taken to be there.
const END = 40;

export function shadedText(label, { choose, hover, enter, take }) {
  const prompt = make("span", { class: "prompt", role: "none" }), end = make("span", { class: "ending", role: "none" });
  const box = make("div", { class: "tokens written", role: "listbox", tabindex: "0", "aria-label": label }, prompt, end);
  let spans = [], chosen = null, complete = completing();
  const indexOf = (event) => event.target.closest?.("[data-token]")?.dataset.token;
  box.addEventListener("click", (event) => indexOf(event) !== undefined && choose(+indexOf(event)));
  box.addEventListener("pointerover", (event) => event.pointerType === "mouse" && hover(indexOf(event) === undefined ? null : +indexOf(event)));
  box.addEventListener("pointerleave", () => hover(null));
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !spans.length) return;
    hover(null); // the keys are about the chosen token, wherever the pointer rests
    const at = chosen ?? -1, last = spans.length - 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last,
      ArrowUp: chosen === null ? 0 : onOtherLine(spans, at, -1), ArrowDown: chosen === null ? 0 : onOtherLine(spans, at, 1) }[event.key];
    if (to !== undefined) choose(Math.max(0, Math.min(last, to)));
    else if (event.key === "Enter" && chosen !== null) enter();
    else if (/^[1-9]$/.test(event.key) && chosen !== null) take(+event.key - 1);
    else return;
    event.preventDefault();
  });

  function add(tokens) {
    const made = tokens.map((token, i) => spanOf(token, complete(token), spans.length + i));
    spans.push(...made);
    end.before(...made);
  }

  return {
    element: box,
    // Adds tokens at the end, which stays in sight unless the reader has scrolled away from it.
    add(tokens) {
      const follows = box.scrollHeight - box.scrollTop - box.clientHeight < END;
      add(tokens);
      if (follows) box.scrollTop = box.scrollHeight;
    },
    // Shows another text.
    show(text, tokens) {
      prompt.replaceChildren(...nodesOf(text));
      for (const span of spans) span.remove();
      spans = [];
      chosen = null;
      end.textContent = "";
      box.removeAttribute("aria-activedescendant");
      complete = completing();
      add(tokens);
    },
    // Marks a token, or none for null.
    mark(index) {
      spans[chosen]?.setAttribute("aria-selected", "false");
      chosen = index === null || !spans[index] ? null : index;
      if (chosen === null) return box.removeAttribute("aria-activedescendant");
      spans[chosen].setAttribute("aria-selected", "true");
      box.setAttribute("aria-activedescendant", spans[chosen].id);
      const inside = spans[chosen].getBoundingClientRect(), outside = box.getBoundingClientRect();
      if (inside.top < outside.top || inside.bottom > outside.bottom) box.scrollTop += inside.top - outside.top - 20;
    },
    end: (text) => { end.textContent = text; },
    legend: () => scaleLegend("probability: 100%", `${10 ** -DECADES * 100}% or less`),
  };
}

function spanOf(token, text, index) {
  const share = token.logprob === null ? null : Math.min(1, -token.logprob / Math.LN10 / DECADES);
  const said = token.logprob === null ? "" : `, probability ${percent(Math.exp(token.logprob))}`;
  const classes = [share === null ? "" : level(share), text === "" ? "part" : text.endsWith("\n") ? "line" : ""];
  return make("span", { role: "option", id: `written-${index}`, "data-token": index, class: classes.filter(Boolean).join(" ") || undefined,
    "aria-label": `${quoted(nameOf(token))}${said}`, "aria-selected": "false" }, ...nodesOf(text));
}

// What is known about a token, with a button for each token that could be in its place.
export function alternativesView(token, index, { take, back }) {
  const buttons = token.top.map((other, i) => {
    const share = make("i", { class: "share", "aria-hidden": "true" }), isOwn = other.id === token.id;
    share.style.setProperty("--share", `${100 * Math.exp(other.logprob)}%`);
    return make("button", { type: "button", tabindex: i === 0 ? "0" : "-1", class: isOwn ? "own" : undefined, onclick: () => take(other),
      "aria-label": `${quoted(nameOf(other))}, ${percent(Math.exp(other.logprob))}${isOwn ? ", this token" : ""}` },
    make("span", { class: "name" }, quoted(nameOf(other))), share, make("span", {}, percent(Math.exp(other.logprob))));
  });
  const list = make("div", { class: "alternatives", role: "group", "aria-label": "Tokens that could be here" }, ...buttons);
  list.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(document.activeElement), to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (event.key === "Escape") back();
    else if (to !== undefined) buttons[Math.max(0, Math.min(buttons.length - 1, to))].focus();
    else return;
    event.preventDefault();
  });
  const probability = token.logprob === null ? "" : `, ${percent(Math.exp(token.logprob))}`;
  return [make("h2", {}, `${quoted(nameOf(token))} · token ${index + 1}${probability}`), list];
}
