// The losses of one text under two models: their difference for each token, and both side by side.

import { figure, make, quoted, selectionOf, signed, tokenAt, tokenRow } from "./shared.js";
import { readView } from "./read.js";

// both: two unpacked results of /inside/read. selection: the chosen token.
export function compareView(both, container, selection) {
  const isAlike = both[0].ids.length === both[1].ids.length && both[0].ids.every((id, i) => id === both[1].ids[i]);
  if (isAlike) differences(both, container, selection);
  else container.append(make("p", { class: "none" }, "The two models divide the text into different tokens, so there is no difference per token. "
    + "Bits per byte can be compared all the same."));
  const columns = both.map((data) => {
    const column = make("section", { "aria-label": data.model }, make("h2", {}, data.model));
    readView(data, column, isAlike ? selection : selectionOf(data.ids.length));
    return column;
  });
  container.append(make("div", { class: "pair" }, ...columns));
}

function differences(both, container, selection) {
  const [first, second] = both, names = both.map(({ model }) => model);
  const nats = (data, token) => data.losses.loss.values[token - 1];
  const isKnown = (token) => token > 0 && token < first.ids.length;
  const gain = (token) => nats(second, token) - nats(first, token);
  const row = tokenRow(first, selection, "The difference of each token; arrow keys choose a token", {
    look: (token) => (isKnown(token)
      ? { level: gain(token) < 0 ? "minus" : gain(token) > 0 ? "plus" : "", label: `${quoted(tokenAt(first, token))}, ${signed(gain(token))} nats for ${names[0]}` }
      : { level: "", label: quoted(tokenAt(first, token)) }),
  });
  const most = Math.max(1e-3, ...Array.from({ length: first.ids.length - 1 }, (_, t) => Math.abs(gain(t + 1))));
  for (const span of row.element.children) {
    const token = +span.dataset.token;
    if (isKnown(token)) span.style.setProperty("--strength", `${Math.round(45 * Math.min(1, Math.abs(gain(token)) / most))}%`);
  }
  const said = make("p", { class: "readout", role: "status" });
  const tokens = Array.from({ length: first.ids.length - 1 }, (_, t) => t + 1), better = tokens.filter((token) => gain(token) > 0).length;
  const worse = tokens.filter((token) => gain(token) < 0).length;
  container.append(make("h2", {}, "Difference per token"),
    make("ul", { class: "legend swatches" },
      make("li", {}, make("i", { class: "plus" }), `${names[0]} expects it more (${better} of ${tokens.length})`),
      make("li", {}, make("i", { class: "minus" }), `${names[1]} expects it more (${worse})`),
      make("li", {}, `the strongest colour is ${figure(most, 2)} nats`)),
    row.element, said);
  selection.listen((token) => {
    said.textContent = isKnown(token) ? `${quoted(tokenAt(first, token))}: ${names[0]} ${nats(first, token).toFixed(2)} nats, `
      + `${names[1]} ${nats(second, token).toFixed(2)} nats, difference ${signed(-gain(token))} nats` : "This token is not predicted.";
  });
}
