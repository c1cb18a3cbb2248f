// The logit lens: what each layer would predict at each position if it were the last one.

import { MOST_COLUMNS, at, cellGrid, cellText, choices, level, make, percent, quoted, scaleLegend, textOf, tokenAt, windowBar, windowOf } from "./shared.js";

// data: an unpacked analysis. selection: the chosen token of all views.
export function lensView(data, container, selection) {
  const { top_ids: ids, top_log_probs: probs, log_prob: own, rank, kl } = data.lens, layers = data.config.n_layer;
  const count = data.ids.length, most = Math.log(data.config.vocab_size);
  const hasNext = (t) => t + 1 < count;
  const highest = Math.max(1e-9, ...kl.values);
  const measures = {
    own: { label: "next token's probability", share: (l, t) => (hasNext(t) ? Math.exp(at(own, l, t)) : null), low: "0", high: "1" },
    top: { label: "top probability", share: (l, t) => Math.exp(at(probs, l, t, 0)), low: "0", high: "1" },
    rank: { label: "next token's rank", share: (l, t) => (hasNext(t) ? 1 - Math.log(at(rank, l, t)) / most : null), low: "last", high: "first" },
    kl: { label: "KL from the last layer", share: (l, t) => at(kl, l, t) / highest, low: "0", high: `${highest.toFixed(1)} nats` },
  };
  let measure = measures.own, cell = [layers - 1, 0];
  const place = make("div"), legend = make("div"), readout = make("div", { class: "panel", role: "status" });
  const options = Object.fromEntries(Object.entries(measures).map(([name, { label }]) => [name, label]));
  container.append(
    make("p", { class: "none" }, "Each column is a token that is predicted, and each row is a layer, with the last one on top. A "
      + "cell shows the token that the layer would predict. It has a frame where this is the token that comes next."),
    choices("colour", "lens", options, (name) => { measure = measures[name]; draw(); }), legend, place, readout);

  function said(layer, t) {
    const next = hasNext(t) ? `; ${quoted(tokenAt(data, t + 1))} has rank ${at(rank, layer, t)}` : "";
    return `layer ${layer + 1}: ${quoted(textOf(data, at(ids, layer, t, 0)))} with ${percent(Math.exp(at(probs, layer, t, 0)))}${next}`;
  }

  function tell() {
    const [layer, t] = cell;
    const likely = Array.from({ length: ids.shape[2] }, (_, i) =>
      `${quoted(textOf(data, at(ids, layer, t, i)))} ${percent(Math.exp(at(probs, layer, t, i)))}`).join(" · ");
    const next = hasNext(t) ? `${quoted(tokenAt(data, t + 1))}: ${percent(Math.exp(at(own, layer, t)))}, rank ${at(rank, layer, t)} · ` : "";
    readout.replaceChildren(make("h3", {}, `Layer ${layer + 1}, after ${quoted(tokenAt(data, t))}`), make("p", {}, likely),
      make("p", { class: "none" }, `${next}KL from the last layer ${at(kl, layer, t).toFixed(3)} nats`));
  }

  function draw() {
    const t = Math.max(0, selection.token - 1), [first, last] = windowOf(t, count, MOST_COLUMNS);
    const columns = Array.from({ length: last - first }, (_, c) => {
      const text = tokenAt(data, first + c + 1);
      return { text: cellText(text), title: `after ${quoted(tokenAt(data, first + c))}` };
    });
    const rows = Array.from({ length: layers }, (_, r) => ({ text: String(layers - r), title: `layer ${layers - r}` }));
    const grid = cellGrid({
      label: "Logit lens, layers by positions", corner: "layer", rows, columns, chosenColumn: t - first,
      cell: (r, c) => {
        const layer = layers - 1 - r, position = first + c, share = measure.share(layer, position);
        const id = at(ids, layer, position, 0);
        return { text: cellText(textOf(data, id)), level: share === null ? "" : level(share), label: said(layer, position),
          isMarked: hasNext(position) && id === data.ids[position + 1] };
      },
      choose: (r, c) => { cell = [layers - 1 - r, first + c]; tell(); },
    });
    const bar = windowBar(first, last, count, MOST_COLUMNS, "positions", (to) => selection.choose(Math.max(0, to) + 1));
    const scrolled = place.querySelector(".cells")?.scrollLeft ?? 0;
    place.replaceChildren(...[bar, grid].filter(Boolean));
    grid.scrollLeft = scrolled;
    const chosen = grid.querySelector("td.chosen");
    if (chosen && (chosen.offsetLeft < grid.scrollLeft || chosen.offsetLeft > grid.scrollLeft + grid.clientWidth - 80))
      grid.scrollLeft = chosen.offsetLeft - grid.clientWidth / 2;
    legend.replaceChildren(scaleLegend(measure.low, measure.high));
  }

  selection.listen((token) => {
    cell = [cell[0], Math.max(0, token - 1)];
    draw();
    tell();
  });
}
