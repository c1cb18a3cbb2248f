// Direct attribution: how much each part of the model adds to the chosen token's logit, compared with another one's.

import { at, cellGrid, make, quoted, signed, textOf, tokenAt } from "./shared.js";

const MOST_BARS = 12;

// data: an unpacked analysis. selection: the chosen token of all views.
export function attributionView(data, container, selection) {
  const place = make("div");
  container.append(make("p", { class: "none" }, "The difference is the logit of the token that comes next, minus that of the likeliest "
    + "other one. A bar is what one part of the model adds to it. The scale of the final LayerNorm is frozen, so that the parts add up."), place);
  selection.listen((token) => place.replaceChildren(...(token === 0
    ? [make("p", { class: "none" }, "Nothing comes before the first token, so it is not predicted. Choose another one.")]
    : drawn(data, token - 1))));
}

// The parts at a position: { name, value } each.
function partsOf(data, t) {
  const found = data.attribution, { n_layer: layers, n_head: heads } = data.config;
  const parts = [
    { name: `token ${quoted(tokenAt(data, t))}`, value: found.token.values[t] },
    { name: `position ${t + 1}`, value: found.position.values[t] },
    { name: "bias of the final LayerNorm", value: found.final_bias.values[t] },
  ];
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < heads; head++)
      parts.push({ name: `layer ${layer + 1}, head ${head + 1}`, value: at(found.heads, t, layer, head) });
    parts.push({ name: `layer ${layer + 1}, MLP`, value: at(found.mlps, t, layer) });
    parts.push({ name: `layer ${layer + 1}, attention bias`, value: at(found.attention_biases, t, layer) });
  }
  return parts;
}

function drawn(data, t) {
  const found = data.attribution, { n_layer: layers, n_head: heads } = data.config;
  const [target, other] = [found.targets.values[t], found.against.values[t]].map((id) => quoted(textOf(data, id)));
  const parts = partsOf(data, t).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const rest = parts.slice(MOST_BARS).reduce((sum, part) => sum + part.value, 0);
  const shown = parts.slice(0, MOST_BARS);
  if (parts.length > MOST_BARS) shown.push({ name: `${parts.length - MOST_BARS} other parts`, value: rest });
  const most = Math.max(1e-9, ...shown.map((part) => Math.abs(part.value)));
  const bars = shown.map(({ name, value }) => {
    const bar = make("i", { class: value < 0 ? "minus" : "plus" });
    bar.style.setProperty("--share", `${(50 * Math.abs(value)) / most}%`);
    return make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "shares" }, bar), make("td", {}, signed(value)));
  });
  const largest = Math.max(1e-9, ...parts.map((part) => Math.abs(part.value)));
  const columns = [...Array.from({ length: heads }, (_, h) => ({ text: `head ${h + 1}` })),
    { text: "MLP", title: "The MLP with its biases" }, { text: "bias", title: "The bias of the attention's c_proj" }];
  const valueAt = (layer, c) => (c < heads ? at(found.heads, t, layer, c)
    : at(c === heads ? found.mlps : found.attention_biases, t, layer));
  const grid = cellGrid({
    label: "Attribution, layers by heads", corner: "layer", columns,
    rows: Array.from({ length: layers }, (_, r) => ({ text: String(layers - r) })),
    cell: (r, c) => {
      const value = valueAt(layers - 1 - r, c);
      return { text: Math.abs(value) < 0.005 ? "·" : signed(value), value: value / largest,
        label: `layer ${layers - r}, ${columns[c].text}: ${signed(value)}` };
    },
  });
  return [
    make("p", { class: "sum" }, `logit of ${target} − logit of ${other} = `, make("b", {}, signed(found.logit.values[t]))),
    make("div", { class: "wide whole" }, make("table", { class: "bars" },
      make("caption", {}, "The largest parts"), make("tbody", {}, ...bars))),
    make("h3", {}, "All heads and MLPs"), grid,
  ];
}
