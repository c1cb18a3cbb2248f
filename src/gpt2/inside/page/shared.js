// What all views share: packed arrays, elements, colours, the chosen token, a row of tokens and a grid of cells.

export const LEVELS = 9;
// Positions that a grid shows next to each other.
export const MOST_COLUMNS = 32;

// An array is packed as { dtype, shape, base64 }, in little endian, and becomes { shape, values }.
export function unpacked(value) {
  if (Array.isArray(value) || value === null || typeof value !== "object") return value;
  if (typeof value.base64 === "string") {
    const text = atob(value.base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i); // millions; a callback for each takes long
    const kinds = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };
    return { shape: value.shape, values: new kinds[value.dtype](bytes.buffer) };
  }
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, unpacked(inner)]));
}

// The element of an unpacked array at some indices.
export function at({ shape, values }, ...indices) {
  return values[indices.reduce((offset, index, axis) => offset * shape[axis] + index, 0)];
}

// A new element. Names of attributes that begin with "on" are events; children are elements or texts, never HTML.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// The token that all views are about: 0 is the first one, and the number of tokens stands for what comes next.
// Its `head` is the head whose attention is shown.
export function selectionOf(count) {
  const listeners = new Set();
  return {
    token: Math.min(1, count),
    head: undefined,
    choose(token) {
      const chosen = Math.min(count, Math.max(0, token));
      if (chosen === this.token) return;
      this.token = chosen;
      for (const listener of listeners) listener(chosen);
    },
    listen(listener) {
      listeners.add(listener);
      listener(this.token);
    },
  };
}

export function textOf(data, id) {
  return data.vocabulary[id] ?? `<${id}>`;
}

// Lets the browser draw and react before long work goes on.
export function nextTask() {
  return new Promise((resolve) => setTimeout(resolve));
}

// The text of the token at an index of the text; after the last one comes the next one, which is not known.
export function tokenAt(data, token) {
  return token < data.ids.length ? textOf(data, data.ids[token]) : "▸";
}

// Characters that leave no mark where they are: joiners, marks of direction, soft hyphens, and spaces but U+0020.
const INVISIBLE = /[\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}\u0080-\u00a0\u1680\u2000-\u200a\u202f\u205f\u2800\u3000\ufff9-\ufffb]/u;
const INVISIBLES = new RegExp(INVISIBLE, "gu");
// Letters that are written from right to left, and the digits and marks between them.
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

function codePoint(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

// White space, control characters and invisible ones as characters that can be seen.
export function visible(text) {
  const shown = { "\n": "⏎", "\t": "⇥", "\r": "␍" };
  return text.replace(/[\n\t\r]/g, (c) => shown[c]).replace(/[\u0000-\u001f\u007f]/g, "�").replace(INVISIBLES, (c) => `⟨${codePoint(c)}⟩`);
}

// A text as nodes in which control characters are � and invisible ones their code points in small type.
export function nodesOf(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, "�").split(new RegExp(`(${INVISIBLE.source})`, "u"))
    .filter(Boolean).map((part) => (INVISIBLE.test(part) ? make("small", { class: "code" }, codePoint(part)) : part));
}

// A text between marks that keep its direction from what stands beside it, where it may be written from right to left.
export function isolated(text) {
  return RIGHT_TO_LEFT.test(text) ? `\u2068${text}\u2069` : text;
}

// A token in quotation marks, with its spaces as ␣.
export function quoted(text) {
  return phrase(text.replace(/ /g, "␣"));
}

// A longer text in quotation marks.
export function phrase(text) {
  return `“${isolated(visible(text))}”`;
}

// The text of a token as that of a cell of a table, never empty.
export function cellText(text) {
  return visible(text).replace(/ /g, "␣") || "∅";
}

// What each token of a text completes: a character whose bytes are in several tokens is the text of the last of them,
// and the others have "". After the last token comes the next one, which is not known.
export function completedTexts(data) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return [...data.ids.map((id) => decoder.decode(bytesOf(textOf(data, id)), { stream: true })), "▸"];
}

// The character of which the token at an index has only some bytes; null for a token of whole characters.
export function wholeOf(data, texts, token) {
  const text = token < data.ids.length ? textOf(data, data.ids[token]) : "", [first] = bytesOf(text);
  if (!isIncomplete(text)) return null;
  let end = (first & 0xc0) === 0x80 ? token : token + 1; // a first byte belongs to what comes later
  while (texts[end] === "") end++;
  return end < data.ids.length ? [...texts[end]][0] : null;
}

// The bytes of a token's text, in which those of an incomplete character are written as \xe2.
function bytesOf(text) {
  return isIncomplete(text) ? Uint8Array.from(text.slice(2).split("\\x"), (digits) => parseInt(digits, 16)) : new TextEncoder().encode(text);
}

function isIncomplete(text) {
  return /^(\\x[0-9a-f]{2})+$/.test(text);
}

// A number with some significant digits, never with an exponent.
export function figure(value, digits) {
  return value.toLocaleString("en", { minimumSignificantDigits: digits, maximumSignificantDigits: digits });
}

export function percent(share) {
  if (share > 0 && share < 1e-6) return "<0.0001%";
  return share >= 0.9995 ? "100%" : share >= 0.1 || share === 0 ? `${(100 * share).toFixed(0)}%` : `${figure(100 * share, 2)}%`;
}

export function signed(value, digits = 2) {
  const figures = Math.abs(value).toFixed(digits);
  return `${value < 0 && +figures !== 0 ? "−" : "+"}${figures}`;
}

// The class of a colour for a share from 0 to 1.
export function level(share) {
  return `v${Math.max(0, Math.min(LEVELS - 1, Math.round(share * (LEVELS - 1))))}`;
}

// 256 colours from 0 to 1, between those of the style sheet: [red, green, blue] each.
export function colourTable() {
  const style = getComputedStyle(document.documentElement);
  const stops = Array.from({ length: LEVELS }, (_, i) => {
    const hex = style.getPropertyValue(`--scale${i}`).trim();
    return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  });
  return Array.from({ length: 256 }, (_, i) => {
    const where = (i / 255) * (LEVELS - 1), low = Math.min(LEVELS - 2, Math.floor(where));
    return stops[low].map((from, channel) => Math.round(from + (where - low) * (stops[low + 1][channel] - from)));
  });
}

export function onSchemeChange(draw) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

export function scaleLegend(low, high) {
  const boxes = Array.from({ length: LEVELS }, (_, i) => make("i", { class: `v${i}` }));
  return make("p", { class: "scale" }, low, make("span", { "aria-hidden": "true" }, ...boxes), high);
}

let groups = 0;

// Radio buttons that call `choose` with the chosen name. options: { name: label }.
export function choices(legend, name, options, choose) {
  const group = `${name}${groups++}`; // the same view can be on a page twice
  const labels = Object.entries(options).map(([value, label], i) =>
    make("label", {}, make("input", { type: "radio", name: group, value, checked: i === 0, onchange: () => choose(value) }), label));
  return make("fieldset", { class: "axes" }, make("legend", {}, legend), ...labels);
}

// Moves the focus between elements of a list by `step`, of which only one is reached with Tab.
export function focusOn(elements, index, options = {}) {
  const target = elements[Math.max(0, Math.min(elements.length - 1, index))];
  for (const element of elements) element.tabIndex = element === target ? 0 : -1;
  if (options.silent !== true) target?.focus();
  return target;
}

// The text as tokens of which one is chosen with the pointer or arrow keys.
// look(token) gives { level, label }: the class of its colour, and what a screen reader says about it.
export function tokenRow(data, selection, label, { look, hover = () => {} }) {
  const count = data.ids.length;
  const box = make("div", { class: "tokens", role: "listbox", tabindex: "0", "aria-label": label });
  const prefix = `t${Math.random().toString(36).slice(2)}-`;
  const texts = completedTexts(data), spans = texts.map((text, token) => {
    const seen = text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥").replace(/\r/g, "␍");
    const isPart = text === "" && tokenAt(data, token) !== "", shown = isPart ? ["·"] : text === "" ? ["∅"] : nodesOf(seen);
    return make("span", { role: "option", id: prefix + token, "data-token": token,
      title: isPart ? "a part of the character that follows" : undefined }, ...shown);
  });
  box.append(...spans);
  const tokenOf = (event) => event.target.closest?.("[data-token]")?.dataset.token;
  box.addEventListener("click", (event) => tokenOf(event) !== undefined && selection.choose(+tokenOf(event)));
  box.addEventListener("pointerover", (event) => tokenOf(event) !== undefined && hover(+tokenOf(event)));
  box.addEventListener("pointerleave", () => hover(null));
  box.addEventListener("keydown", (event) => {
    const steps = {
      ArrowLeft: () => selection.token - 1, ArrowRight: () => selection.token + 1, Home: () => 0, End: () => count,
      ArrowUp: () => onOtherLine(spans, selection.token, -1), ArrowDown: () => onOtherLine(spans, selection.token, 1),
    };
    if (!steps[event.key]) return;
    event.preventDefault();
    selection.choose(steps[event.key]());
  });
  let chosen = null;
  selection.listen((token) => {
    chosen?.setAttribute("aria-selected", "false");
    chosen = spans[token];
    chosen.setAttribute("aria-selected", "true");
    box.setAttribute("aria-activedescendant", chosen.id);
    const inside = chosen.getBoundingClientRect(), outside = box.getBoundingClientRect();
    if (inside.top < outside.top || inside.bottom > outside.bottom) box.scrollTop += inside.top - outside.top - 20;
  });
  const paint = () => spans.forEach((span, token) => {
    const { level: name, label: said } = look(token), whole = wholeOf(data, texts, token);
    span.className = `${token === count ? "next " : ""}${name ?? ""}`;
    span.setAttribute("aria-label", whole === null ? said : `${said}, a part of ${quoted(whole)}`);
  });
  paint();
  return { element: box, paint };
}

// The token of the line above or below that is nearest to a token.
export function onOtherLine(spans, token, direction) {
  const here = spans[token].getClientRects()[0];
  let best = token, distance = Infinity, line = null;
  for (let other = token + direction; other >= 0 && other < spans.length; other += direction) {
    const there = spans[other].getClientRects()[0];
    if (!there || Math.abs(there.top - here.top) < there.height / 2) continue;
    line ??= there.top;
    if (Math.abs(there.top - line) > there.height / 2) break;
    const away = Math.abs(there.left - here.left);
    if (away < distance) [best, distance] = [other, away];
  }
  return best;
}

// A table of coloured cells in which arrow keys move.
// rows and columns: { text, title } each. cell(row, column) gives { text, level or value, label, isMarked }, where a
// value from -1 to 1 has a colour for its sign. choose(row, column) is called for a cell with the focus.
export function cellGrid({ label, corner, rows, columns, cell, choose = () => {}, chosenColumn = null }) {
  const head = make("tr", {}, make("th", { scope: "col" }, corner), ...columns.map(({ text, title }, c) =>
    make("th", { scope: "col", title, class: c === chosenColumn ? "chosen" : undefined }, text)));
  const cells = rows.map((_, r) => columns.map((_, c) => {
    const { text, level: name, value, label: said, isMarked } = cell(r, c);
    const classes = [name, value === undefined ? "" : value < 0 ? "minus" : "plus", isMarked ? "marked" : "",
      c === chosenColumn ? "chosen" : ""].filter(Boolean).join(" ");
    const made = make("td", { class: classes || undefined, tabindex: "-1", "aria-label": said, title: said }, text);
    if (value !== undefined) made.style.setProperty("--strength", `${Math.round(45 * Math.min(1, Math.abs(value)))}%`);
    made.addEventListener("focus", () => choose(r, c));
    made.addEventListener("click", () => made.focus());
    return made;
  }));
  const body = cells.map((line, r) =>
    make("tr", {}, make("th", { scope: "row", title: rows[r].title }, rows[r].text), ...line));
  const table = make("table", { role: "grid", "aria-label": label }, make("thead", {}, head), make("tbody", {}, ...body));
  if (cells[0]?.length) cells[0][Math.max(0, chosenColumn ?? 0)].tabIndex = 0;
  table.addEventListener("keydown", (event) => {
    const r = cells.findIndex((line) => line.includes(event.target)), c = r < 0 ? -1 : cells[r].indexOf(event.target);
    const to = {
      ArrowLeft: [r, c - 1], ArrowRight: [r, c + 1], ArrowUp: [r - 1, c], ArrowDown: [r + 1, c],
      Home: [r, 0], End: [r, columns.length - 1],
    }[event.key];
    if (r < 0 || !to) return;
    event.preventDefault();
    const target = cells[to[0]]?.[to[1]];
    if (!target) return;
    event.target.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  });
  return make("div", { class: "wide cells" }, table);
}

// The first and the last column of a window of at most `most` columns with a column in it, of `count` columns.
export function windowOf(column, count, most) {
  const first = Math.min(Math.floor(column / most) * most, Math.max(0, count - 1));
  return [first, Math.min(count, first + most)];
}

export function windowBar(first, last, count, most, noun, go) {
  if (count <= most) return null;
  return make("p", { class: "window" },
    make("button", { type: "button", disabled: first === 0, onclick: () => go(first - most) }, "← earlier"),
    ` ${noun} ${first + 1} to ${last} of ${count} `,
    make("button", { type: "button", disabled: last === count, onclick: () => go(first + most) }, "later →"));
}
