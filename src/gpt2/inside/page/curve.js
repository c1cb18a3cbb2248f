// The loss of a text over the steps of a run. Step 0 has a place of its own on the logarithmic axis.

import { make } from "./shared.js";

const HEIGHT = 220, LEFT = 40, RIGHT = 16, TOP = 10, BOTTOM = 30;
// Least distance of two labels of the axis, in pixels.
const APART = 52;

// A legend, the curve, and a slider that chooses a step. curve: an unpacked result of /inside/curve. chosen: the index of
// the step that is chosen at first. moved(index) is called when another one is.
export function curveView(curve, container, { chosen, moved }) {
  const { steps, losses } = curve, count = curve.ids.length - 1;
  const lossOf = (i, t) => losses.values[i * count + t];
  const mean = steps.map((_, i) => losses.values.subarray(i * count, (i + 1) * count).reduce((sum, nats) => sum + nats, 0) / count);
  const slider = make("input", { type: "range", id: "time-step", min: 0, max: steps.length - 1, step: 1, value: chosen, oninput: () => move(+slider.value) });
  const said = make("span"), picture = make("div", { class: "curve" }), legend = make("ul", { class: "legend swatches" });
  const omitted = make("p", { class: "none", hidden: !curve.unreadable.length }, `These steps cannot be read: ${curve.unreadable.join(", ")}.`);
  container.append(make("h2", {}, "Loss of the text over the run"), legend, picture, omitted,
    make("div", { class: "when" }, make("label", { for: "time-step" }, "Step"), slider, said));
  const draw = curveOf(picture, { steps, choose: (index) => { slider.value = index; move(index); } });
  let token = 0, name = "";

  function move(index) {
    chosen = index;
    tell();
    moved(index);
  }

  function tell() {
    const isPredicted = token > 0 && token <= count, own = isPredicted ? steps.map((_, i) => lossOf(i, token - 1)) : undefined;
    said.textContent = `${steps[chosen].toLocaleString("en")} · ${mean[chosen].toFixed(3)} nats per token`;
    slider.setAttribute("aria-valuetext", `step ${steps[chosen]}, loss ${mean[chosen].toFixed(3)} nats per token, ${chosen + 1} of ${steps.length}`);
    legend.replaceChildren(make("li", {}, make("i", { class: "of-text" }), `the text: ${mean[chosen].toFixed(2)} nats per token`),
      ...(own ? [make("li", {}, make("i", { class: "of-token" }), `the token ${name}: ${own[chosen].toFixed(2)} nats`)] : []),
      make("li", {}, "optimizer steps on a logarithmic axis"));
    draw({ mean, own, chosen });
  }

  tell();
  return {
    // Shows the loss of a token, which has a name, too.
    follow(other, its) {
      [token, name] = [other, its];
      tell();
    },
    end: draw.end,
  };
}

// The index of the step that is nearest to one.
export function nearest(steps, wanted) {
  return steps.reduce((best, step, i) => (Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? i : best), 0);
}

// Returns what draws the losses of a text, and of one token if `own` is given, with a mark at the chosen step; its `end`
// lets the container go. choose is called with the index of the step that is nearest to the pointer.
function curveOf(container, { steps, choose }) {
  const first = steps.find((step) => step > 0) ?? 1;
  const places = steps.map((step) => (step > 0 ? Math.log2(step) : Math.log2(first) - 1));
  let shown = null, x = () => 0;
  const draw = () => shown && container.clientWidth && container.replaceChildren(pictureOf(shown));
  const observer = new ResizeObserver(draw);
  observer.observe(container);
  container.addEventListener("click", (event) => {
    const at = event.clientX - container.getBoundingClientRect().left;
    choose(steps.reduce((best, _, i) => (Math.abs(x(i) - at) < Math.abs(x(best) - at) ? i : best), 0));
  });

  function pictureOf({ mean, own, chosen }) {
    const width = container.clientWidth, most = Math.max(0.1, ...mean, ...(own ?? [])) * 1.05;
    const span = Math.max(1e-9, places.at(-1) - places[0]);
    x = (i) => LEFT + (steps.length > 1 ? ((places[i] - places[0]) / span) * (width - LEFT - RIGHT) : (width - LEFT - RIGHT) / 2);
    const y = (nats) => TOP + (1 - nats / most) * (HEIGHT - TOP - BOTTOM), bottom = y(0);
    const path = (values) => values.map((nats, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(nats).toFixed(1)}`).join("");
    const dots = (values, name) => values.map((nats, i) => svg("circle", { class: name, cx: x(i), cy: y(nats), r: i === chosen ? 5 : 3 }));
    const gap = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50].find((size) => most / size <= 6) ?? 100;
    const lines = Array.from({ length: Math.floor(most / gap) + 1 }, (_, n) => n * gap);
    const labelled = [];
    for (const i of [chosen, steps.length - 1, ...steps.keys()]) if (labelled.every((other) => Math.abs(x(i) - x(other)) >= APART)) labelled.push(i);
    const labels = labelled.map((i) => svg("text", { x: x(i), y: HEIGHT - 10, class: i === chosen ? "chosen" : "",
      "text-anchor": x(i) > width - APART / 2 ? "end" : "middle" }, steps[i].toLocaleString("en")));
    const said = `Loss of the text at ${steps.length} steps: from ${mean[0].toFixed(2)} nats per token at step ${steps[0]} to `
      + `${mean.at(-1).toFixed(2)} at step ${steps.at(-1)}`;
    return svg("svg", { role: "img", "aria-label": said, width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` },
      ...lines.flatMap((nats) => [svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(nats), y2: y(nats) }),
        svg("text", { x: LEFT - 6, y: y(nats) + 4, "text-anchor": "end" }, `${+nats.toFixed(1)}`)]),
      ...labels,
      svg("line", { class: "mark", x1: x(chosen), x2: x(chosen), y1: TOP, y2: bottom }),
      ...(own ? [svg("path", { class: "of-token", d: path(own) }), ...dots(own, "of-token")] : []),
      svg("path", { class: "of-text", d: path(mean) }), ...dots(mean, "of-text"));
  }

  return Object.assign((state) => { shown = state; draw(); }, { end: () => observer.disconnect() });
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
