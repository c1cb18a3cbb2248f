// Activation patching: how far the corrupted text's prediction returns to the clean one's with one value of the clean text.

import { MOST_COLUMNS, at, cellGrid, cellText, isolated, make, quoted, signed, textOf, windowBar } from "./shared.js";

// data: an unpacked analysis with `patching`.
export function patchingView(data, container) {
  const found = data.patching, { n_layer: layers, n_head: heads } = data.config, count = data.ids.length;
  const range = found.clean - found.corrupted, share = (change) => (Math.abs(range) < 1e-6 ? 0 : change / range);
  const [answer, other] = [found.answer, found.other].map((id) => quoted(textOf(data, id)));
  const rows = Array.from({ length: layers }, (_, r) => ({ text: String(layers - r), title: `layer ${layers - r}` }));
  const shown = (where, change) => {
    const percents = Math.abs(share(change)) < 0.005 ? "0" : (100 * share(change)).toFixed(0).replace("-", "−");
    return { text: percents === "0" ? "·" : percents, value: share(change), label: `${where}: ${percents}%, a change of ${signed(change, 3)}` };
  };
  const differing = data.ids.findIndex((id, position) => id !== found.ids[position]);
  const place = make("div");
  container.append(
    make("p", { class: "none" }, `The logit of ${answer} minus that of ${other} after the last token is ${signed(found.clean)} for the first text and `
      + `${signed(found.corrupted)} for the second text. For each cell, the model reads the second text, and one value is replaced by that of `
      + "the first text. The cell is how many percent of the difference between the two texts this restores."),
    make("h3", {}, "Residual stream before each layer, from the first position where the texts differ"), place,
    make("h3", {}, "Output of each head, at all positions"),
    cellGrid({
      label: "Patching of heads, layers by heads", corner: "layer", rows,
      columns: Array.from({ length: heads }, (_, h) => ({ text: `head ${h + 1}` })),
      cell: (r, c) => shown(`layer ${layers - r}, head ${c + 1}`, at(found.heads, layers - 1 - r, c)),
    }));

  function draw(from) {
    const first = Math.max(differing, from), last = Math.min(count, first + MOST_COLUMNS);
    const columns = Array.from({ length: last - first }, (_, c) => {
      const [clean, corrupted] = [data.ids, found.ids].map((ids) => isolated(cellText(textOf(data, ids[first + c]))));
      return { text: clean === corrupted ? clean : `${clean} ← ${corrupted}`, title: `position ${first + c + 1}` };
    });
    const grid = cellGrid({
      label: "Patching of the residual stream, layers by positions", corner: "layer", rows, columns,
      cell: (r, c) => shown(`layer ${layers - r}, position ${first + c + 1}`, at(found.streams, layers - 1 - r, first + c)),
    });
    const bar = windowBar(first - differing, last - differing, count - differing, MOST_COLUMNS, "positions",
      (to) => draw(differing + to));
    place.replaceChildren(...[bar, grid].filter(Boolean));
  }

  draw(differing);
}
