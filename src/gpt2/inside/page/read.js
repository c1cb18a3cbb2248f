// The text as a heat map: the loss, rank or entropy of each token, and what the model expected instead.

import { at, choices, completedTexts, figure, level, make, nodesOf, percent, quoted, scaleLegend, textOf, tokenAt, tokenRow, visible, wholeOf } from "./shared.js";

const MOST_WORST = 10;

// data: an unpacked analysis. selection: the chosen token of all views.
export function readView(data, container, selection) {
  const measures = measuresOf(data), texts = completedTexts(data);
  let measure = measures.loss, hovered = null;
  const row = tokenRow(data, selection, "The text, token by token; arrow keys choose a token", {
    look: (token) => ({ level: measure.share(token) === null ? "" : level(measure.share(token)), label: spoken(data, token) }),
    hover: (token) => { hovered = token; show(hovered ?? selection.token); },
  });
  const panel = make("div", { class: "panel", role: "status", "aria-label": "The chosen token" });
  const legend = make("div");
  const show = (token) => panel.replaceChildren(...details(data, texts, token));
  const paint = () => { row.paint(); legend.replaceChildren(scaleLegend(measure.low, measure.high)); };
  const options = Object.fromEntries(Object.entries(measures).map(([name, { label }]) => [name, label]));
  container.append(
    totals(data),
    make("div", { class: "bar" }, make("h2", {}, "The text"),
      choices("colour", "measure", options, (name) => { measure = measures[name]; paint(); })),
    legend,
    make("div", { class: "reading" }, row.element, panel),
    make("h2", {}, "Least expected tokens"), worst(data, texts, selection),
  );
  if (data.memorised) container.append(...passages(data, selection));
  paint();
  selection.listen((token) => { hovered = null; show(token); });
}

// What can colour a token: a label, the share of the scale from 0 to 1 (null for none), and the ends of the scale.
function measuresOf(data) {
  const most = Math.log(data.config.vocab_size), { loss, rank, entropy } = data.losses;
  const known = (token) => token > 0 && token < data.ids.length;
  const measures = {
    loss: { label: "loss", share: (t) => (known(t) ? loss.values[t - 1] / most : null), low: "0 nats",
      high: `${most.toFixed(1)} nats, a guess among all tokens` },
    rank: { label: "rank", share: (t) => (known(t) ? Math.log(rank.values[t - 1]) / most : null), low: "rank 1",
      high: `rank ${data.config.vocab_size.toLocaleString("en")}, by its logarithm` },
    entropy: { label: "entropy", share: (t) => (t > 0 ? entropy.values[t - 1] / most : null), low: "sure",
      high: `${most.toFixed(1)} nats, all tokens alike` },
  };
  if (data.memorised) {
    const lengths = data.memorised.lengths.values, longest = Math.max(1, ...lengths);
    measures.memorised = { label: "in the training data", share: (t) => (t < lengths.length ? lengths[t] / longest : null),
      low: `fewer than ${data.memorised.shortest} tokens`, high: `${longest} tokens in a row` };
  }
  return measures;
}

function totals(data) {
  const tile = (name, value, remark) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value, make("small", {}, remark)));
  const bits = data.bits_per_byte === null ? "–" : data.bits_per_byte.toFixed(3);
  return make("dl", { class: "tiles" },
    tile("bits per byte", bits, `${data.bytes.toLocaleString("en")} bytes are predicted`),
    tile("mean loss", data.mean_loss.toFixed(3), "nats per token"),
    tile("perplexity", figure(Math.exp(data.mean_loss), 4), "e to the mean loss"),
    tile("tokens", data.ids.length.toLocaleString("en"), "the first one is not predicted"));
}

function spoken(data, token) {
  const text = quoted(tokenAt(data, token));
  if (token === data.ids.length) return "What comes after the text";
  if (token === 0) return `${text}, the first token, which is not predicted`;
  return `${text}, loss ${data.losses.loss.values[token - 1].toFixed(2)} nats, rank ${data.losses.rank.values[token - 1]}`;
}

// Elements about one token: figures, and the likeliest tokens in its place.
function details(data, texts, token) {
  const end = data.ids.length, whole = wholeOf(data, texts, token);
  const title = token === end ? "After the text"
    : `${quoted(tokenAt(data, token))} · token ${token + 1}${whole === null ? "" : `, a part of ${quoted(whole)}`}`;
  const made = [make("h3", {}, title)];
  if (token === 0) return [...made, make("p", { class: "none" }, "Nothing comes before the first token, so it is not predicted.")];
  const t = token - 1, { loss, rank, entropy, top_ids: ids, top_log_probs: probs } = data.losses;
  const facts = [["entropy", `${entropy.values[t].toFixed(2)} nats`]];
  if (token < end) {
    const nats = loss.values[t];
    facts.unshift(["loss", `${nats.toFixed(2)} nats`], ["probability", percent(Math.exp(-nats))],
      ["rank", rank.values[t].toLocaleString("en")]);
    if (data.memorised) facts.push(["in training data", `${data.memorised.lengths.values[token] || `fewer than ${data.memorised.shortest}`} tokens in a row`]);
  }
  made.push(make("dl", { class: "facts" }, ...facts.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
  const rows = Array.from({ length: ids.shape[1] }, (_, i) => {
    const id = at(ids, t, i), share = Math.exp(at(probs, t, i));
    const bar = make("i", { class: "share" });
    bar.style.setProperty("--share", `${100 * share}%`);
    const isOwn = token < end && id === data.ids[token];
    return make("tr", { class: isOwn ? "best" : undefined }, make("th", { scope: "row" }, quoted(textOf(data, id))),
      make("td", {}, bar), make("td", {}, percent(share)));
  });
  made.push(make("table", { class: "likely" }, make("caption", {}, "Likeliest tokens here"), make("tbody", {}, ...rows)));
  return made;
}

function worst(data, texts, selection) {
  const order = [...data.losses.loss.values.keys()].sort((a, b) => data.losses.loss.values[b] - data.losses.loss.values[a]);
  const rows = order.slice(0, MOST_WORST).map((t) => {
    const token = t + 1, first = Math.max(0, token - 6);
    const before = (first > 0 ? "…" : "") + visible(texts.slice(first, token).join(""));
    const button = make("button", { type: "button", onclick: () => selection.choose(token) }, quoted(tokenAt(data, token)));
    return make("tr", {}, make("th", { scope: "row" }, make("span", { class: "before" }, before), " ", button),
      make("td", {}, data.losses.loss.values[t].toFixed(2)), make("td", {}, data.losses.rank.values[t].toLocaleString("en")),
      make("td", {}, quoted(textOf(data, at(data.losses.top_ids, t, 0)))));
  });
  const heads = ["text before, and the token", "loss in nats", "rank", "likeliest token"].map((name) => make("th", { scope: "col" }, name));
  return make("div", { class: "wide whole", tabindex: "0" },
    make("table", { class: "worst" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)));
}

function passages(data, selection) {
  const { passages: found, tokens, shortest } = data.memorised;
  const said = found.length
    ? `These passages are in the ${tokens.toLocaleString("en")} training tokens word for word. The text around them is that of the training data.`
    : `No ${shortest} tokens in a row are in the ${tokens.toLocaleString("en")} training tokens.`;
  return [make("h2", {}, "Passages in the training data"), make("p", { class: "none" }, said), ...found.map((passage) =>
    make("article", { class: "passage" },
      make("p", { class: "facts" }, `${passage.length} tokens · at offset ${passage.offset.toLocaleString("en")} in the training tokens · `,
        make("button", { type: "button", onclick: () => selection.choose(passage.position) }, "show in the text")),
      make("pre", {}, ...nodesOf(passage.before), make("mark", {}, ...nodesOf(passage.text)), ...nodesOf(passage.after))))];
}
