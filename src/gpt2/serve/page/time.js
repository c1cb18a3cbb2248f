// How a run learned a text: its loss at every snapshot, and the views of the text at the chosen one.

import { ask, eventsOf } from "./api.js";
import { curveOf } from "./curve.js";
import { insideViews } from "./inside/analysis.js";
import { readView } from "./inside/read.js";
import { make, nextTask, quoted, tokenAt, unpacked } from "./inside/shared.js";
import { textView } from "./reading.js";

// Time after the last move of the slider before the views follow, in milliseconds.
const SETTLED = 200;

// Choose a step with a slider, below the curve of the losses over all steps.
export function timeTab(container, page) {
  let wanted = null, stop = () => {};
  const view = textView(container, page, {
    name: "time", action: "Show", about: "The loss of a text at each step of the run whose weights were kept, and the views of that step.", fields: [],
    reason: ({ id, inside, time }) => (inside && !time
      ? `${id} is not the folder of a run, so its earlier weights are not known. Serve the out_dir of a run that was trained with `
        + "--snapshot_interval=geometric." : null),
    async compute({ model, text }, signal, status) {
      const curve = unpacked(await streamed("inside/curve", { model, text }, signal, status, "snapshots"));
      signal.throwIfAborted();
      stop(); // only now, because a result stays where another one cannot be computed
      const own = new AbortController();
      stop = () => own.abort();
      return (place, selectionFor) => show({ place, selectionFor, model, text, curve, status, stopped: AbortSignal.any([signal, own.signal]) });
    },
  });

  async function show({ place, selectionFor, model, text, curve, status, stopped }) {
    const { steps, losses } = curve, count = curve.ids.length - 1;
    const mean = steps.map((_, i) => losses.values.subarray(i * count, (i + 1) * count).reduce((sum, nats) => sum + nats, 0) / count);
    let chosen = nearest(steps, wanted ?? steps.at(-1)), selection = null, loading = null, timer = null;
    const slider = make("input", { type: "range", id: "time-step", min: 0, max: steps.length - 1, step: 1, value: chosen });
    const said = make("span");
    const picture = make("div", { class: "curve" }), legend = make("ul", { class: "legend swatches" }), views = make("div", { class: "views" });
    const omitted = make("p", { class: "none", hidden: !curve.unreadable.length }, `These steps cannot be read: ${curve.unreadable.join(", ")}.`);
    place.classList.add("time");
    place.append(make("h2", {}, "Loss of the text over the run"), legend, picture, omitted,
      make("div", { class: "when" }, make("label", { for: "time-step" }, "Step"), slider, said), views);
    const draw = curveOf(picture, { steps, choose: (index) => { slider.value = index; move(); } });

    // The loss of the token that all views are about; undefined for the first one and for what comes next.
    function tokenLosses() {
      const t = selection ? selection.token - 1 : -1;
      return t >= 0 && t < count ? steps.map((_, i) => losses.values[i * count + t]) : undefined;
    }

    function tell() {
      const own = tokenLosses(), name = selection ? quoted(tokenAt(selection.data, selection.token)) : "";
      said.textContent = `${steps[chosen].toLocaleString("en")} · ${mean[chosen].toFixed(3)} nats per token`;
      slider.setAttribute("aria-valuetext", `step ${steps[chosen]}, loss ${mean[chosen].toFixed(3)} nats per token, ${chosen + 1} of ${steps.length}`);
      legend.replaceChildren(make("li", {}, make("i", { class: "of-text" }), `the text: ${mean[chosen].toFixed(2)} nats per token`),
        ...(own ? [make("li", {}, make("i", { class: "of-token" }), `the token ${name}: ${own[chosen].toFixed(2)} nats`)] : []),
        make("li", {}, "optimizer steps on a logarithmic axis"));
      draw({ mean, own, chosen });
    }

    // Shows another step at once in the curve, and in the views when the slider rests.
    function move() {
      chosen = +slider.value;
      wanted = steps[chosen];
      tell();
      page.changed();
      clearTimeout(timer);
      timer = setTimeout(() => load().then(() => status.say(""), status.fail), SETTLED);
    }

    // Computes and shows the views of the chosen step, in place of any that are on their way.
    async function load() {
      loading?.abort();
      const own = loading = new AbortController(), signal = AbortSignal.any([own.signal, stopped]);
      const step = steps[chosen], received = await streamed("inside/analysis", { model, text, step }, signal, status, "layers");
      await nextTask();
      const data = unpacked(received);
      await nextTask();
      signal.throwIfAborted();
      const before = selection, kept = make("div");
      views.style.minHeight = `${views.offsetHeight}px`; // so that the page does not jump while the views are drawn
      views.replaceChildren(kept);
      selection = Object.assign(selectionFor(data.ids.length), { data, head: before?.head });
      if (before) selection.choose(before.token);
      readView(data, kept, selection);
      await nextTask();
      signal.throwIfAborted();
      for (const _ of insideViews(data, kept, selection)) {
        await nextTask();
        signal.throwIfAborted();
      }
      views.style.minHeight = "";
      views.dataset.step = step;
      selection.listen(tell);
    }

    slider.addEventListener("input", move);
    stopped.addEventListener("abort", () => { clearTimeout(timer); draw.end(); });
    wanted = steps[chosen];
    tell();
    await load().catch((error) => { // the slider may have moved on
      if (stopped.aborted || error.name !== "AbortError") throw error;
    });
  }

  return {
    ...view,
    shown: () => view.shown() && { ...view.shown(), step: wanted },
    step: () => wanted,
    stepTo: (step) => { wanted = step; },
  };
}

// The index of the step that is nearest to one.
function nearest(steps, wanted) {
  return steps.reduce((best, step, i) => (Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? i : best), 0);
}

// The last event of a stream, whose progress is shown before.
async function streamed(path, body, signal, { say, progress }, what) {
  let last = null;
  for await (const event of eventsOf(await ask(path, { ...body, stream: true }, signal))) {
    last = event;
    if (!event.progress) continue;
    const { done, total } = event.progress;
    say(`Computing: ${what} …`);
    progress(done, total);
  }
  return last;
}
