// The attention of every head: small pictures of all of them, and a large one of the chosen head.

import { colourTable, focusOn, level, make, onSchemeChange, percent, quoted, tokenAt, tokenRow } from "./shared.js";

const THUMBNAIL = 48;
// Time for which pictures are drawn without a pause, in milliseconds.
const SLICE = 25;

// data: an unpacked analysis. selection: the chosen token of all views.
export function attentionView(data, container, selection) {
  const { n_layer: layers, n_head: heads } = data.config, size = data.attention.tokens;
  const weight = weightsOf(data);
  let chosen = 0, cursor = null;
  const grid = make("div", { class: "heads", role: "group", "aria-label": "All heads; arrow keys move, Enter chooses" });
  grid.style.setProperty("--heads", heads);
  const buttons = [], number = (name, text) => make("span", { class: name, "aria-hidden": "true" }, text);
  grid.append(number("layer", "layer"), ...Array.from({ length: heads }, (_, head) => number("number", head + 1)));
  for (let layer = layers - 1; layer >= 0; layer--) {
    grid.append(number("layer", layer + 1));
    for (let head = 0; head < heads; head++) {
      const index = layer * heads + head, name = `layer ${layer + 1}, head ${head + 1}: ${habit(weight, index, size)}`;
      const button = make("button", { type: "button", "aria-label": name, title: name, onclick: () => choose(index) },
        make("canvas", { "aria-hidden": "true" }));
      buttons[index] = button;
      grid.append(button);
    }
  }
  grid.addEventListener("keydown", (event) => {
    const index = buttons.indexOf(event.target);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: heads, ArrowDown: -heads }[event.key];
    if (index < 0 || !step || !buttons[index + step]) return;
    event.preventDefault();
    focusOn(buttons, index + step);
  });

  const canvas = make("canvas", { "aria-hidden": "true" }), line = make("i", { class: "line", "aria-hidden": "true" });
  const picture = make("div", { class: "matrix", tabindex: "0", role: "group",
    "aria-label": "Attention of the chosen head; arrow keys move from cell to cell" }, canvas, line);
  const title = make("h3"), said = make("p", { class: "none" }), readout = make("p", { class: "readout", role: "status" });
  const row = tokenRow(data, selection, "Where the chosen head looks; arrow keys choose the token that is predicted", {
    look: (token) => {
      const query = selection.token - 1, share = query >= 0 && query < size && token <= query ? weight(chosen, query, token) : null;
      return { level: share === null ? (token === selection.token ? "" : "later") : level(Math.sqrt(share)),
        label: `${quoted(tokenAt(data, token))}${share === null ? "" : `, weight ${percent(share)}`}` };
    },
  });
  container.append(
    make("p", { class: "none" }, "Each picture is a head, and the last layer is on top. In a picture, each row is a position, and each column is a "
      + `position that it attends to. A stronger colour is a larger weight; it follows the weight's square root.${size < data.ids.length
        ? ` The pictures show the first ${size} of ${data.ids.length} tokens.` : ""}`),
    grid, make("div", { class: "head" }, make("div", {}, title, said, picture, readout), row.element));

  function choose(index) {
    chosen = selection.head = index;
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === index ? "true" : "false"));
    focusOn(buttons, index, { silent: true });
    title.textContent = `Layer ${Math.floor(index / heads) + 1}, head ${(index % heads) + 1}`;
    said.textContent = `On average: ${habit(weight, index, size)}.`;
    drawLarge();
    row.paint();
    tell();
  }

  function tell() {
    const query = cursor ? cursor[0] : selection.token - 1;
    if (query < 0 || query >= size) return void (readout.textContent = query < 0
      ? "Nothing comes before the first token." : "The weights of this position are not on the page.");
    const key = cursor ? cursor[1] : strongest(query);
    readout.textContent = `From ${quoted(tokenAt(data, query))} (${query + 1}) to ${quoted(tokenAt(data, key))} (${key + 1}): `
      + `${percent(weight(chosen, query, key))}${cursor ? "" : ", the most of this row"}`;
  }

  function strongest(query) {
    let best = 0;
    for (let key = 1; key <= query; key++) if (weight(chosen, query, key) > weight(chosen, query, best)) best = key;
    return best;
  }

  function place() {
    const query = cursor ? cursor[0] : selection.token - 1;
    line.hidden = query < 0 || query >= size;
    line.style.top = `${(100 * query) / size}%`;
    line.style.height = `${100 / size}%`;
  }

  function drawLarge() {
    draw(canvas, size, size, (query, key) => (key <= query ? weight(chosen, query, key) : -1));
    place();
  }

  // Draws the small pictures, with pauses in which the browser can do something else.
  function drawSmall(from = 0) {
    const small = Math.min(size, THUMBNAIL), began = performance.now();
    for (let index = from; index < buttons.length; index++) {
      if (performance.now() - began > SLICE) return void setTimeout(drawSmall, 0, index);
      draw(buttons[index].firstChild, small, small, (r, c) => pooled(weight, index, r, c, size, small));
    }
  }

  function drawAll() {
    drawSmall();
    drawLarge();
  }

  picture.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const query = Math.floor(((event.clientY - box.top) / box.height) * size);
    const key = Math.floor(((event.clientX - box.left) / box.width) * size);
    cursor = query >= 0 && query < size && key >= 0 && key <= query ? [query, key] : null;
    place();
    tell();
  });
  picture.addEventListener("pointerleave", () => { cursor = null; place(); tell(); });
  picture.addEventListener("click", () => cursor && selection.choose(cursor[0] + 1));
  picture.addEventListener("keydown", (event) => {
    const [query, key] = cursor ?? [Math.min(size - 1, Math.max(0, selection.token - 1)), 0];
    const to = { ArrowLeft: [query, key - 1], ArrowRight: [query, key + 1], ArrowUp: [query - 1, key], ArrowDown: [query + 1, key],
      Home: [query, 0], End: [query, query] }[event.key];
    if (event.key === "Escape") cursor = null;
    else if (event.key === "Enter" && cursor) selection.choose(query + 1);
    else if (to && to[0] >= 0 && to[0] < size) cursor = [to[0], Math.max(0, Math.min(to[0], to[1]))];
    if (to) event.preventDefault();
    place();
    tell();
  });
  picture.addEventListener("focusout", () => { cursor = null; place(); tell(); });
  selection.listen(() => { row.paint(); place(); tell(); });
  onSchemeChange(drawAll);
  drawAll();
  choose(selection.head ?? 0);
}

// A function of (head, query, key). A head's weights are the rows of its lower triangle, in steps of 1/255.
function weightsOf(data) {
  const { values } = data.attention.weights, size = data.attention.tokens, triangle = (size * (size + 1)) / 2;
  return (head, query, key) => values[head * triangle + (query * (query + 1)) / 2 + key] / 255;
}

// What a head does on average, in words.
function habit(weight, head, size) {
  let self = 0, before = 0, first = 0;
  for (let query = 2; query < size; query++) {
    self += weight(head, query, query);
    before += weight(head, query, query - 1);
    first += weight(head, query, 0);
  }
  const count = Math.max(1, size - 2);
  return `${percent(self / count)} to itself, ${percent(before / count)} to the token before, ${percent(first / count)} to the first`;
}

// The largest weight among those that a pixel of a small picture stands for; -1 above the diagonal.
function pooled(weight, head, row, column, size, small) {
  if (column > row) return -1;
  const [top, bottom] = [row, row + 1].map((r) => Math.floor((r * size) / small));
  const [left, right] = [column, column + 1].map((c) => Math.floor((c * size) / small));
  let most = 0;
  for (let query = top; query < bottom; query++)
    for (let key = left; key < Math.min(right, query + 1); key++) most = Math.max(most, weight(head, query, key));
  return most;
}

function draw(canvas, rows, columns, valueAt) {
  canvas.width = columns;
  canvas.height = rows;
  const colours = colourTable(), context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let row = 0, offset = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, offset += 4) {
      const value = valueAt(row, column);
      if (value < 0) continue;
      const [red, green, blue] = colours[Math.round(255 * Math.sqrt(value))];
      image.data.set([red, green, blue, 255], offset);
    }
  }
  context.putImageData(image, 0, 0);
}
