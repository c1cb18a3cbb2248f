// How a run learned a text: its loss at every snapshot, and the views of the text at the chosen one.

import { ask, eventsOf } from "./api.js";
import { insideViews } from "./inside/analysis.js";
import { curveView, nearest } from "./inside/curve.js";
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
    reason: ({ id, inside, steps }) => (inside && !steps
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
    const { steps } = curve, first = nearest(steps, wanted ?? steps.at(-1)), views = make("div", { class: "views" });
    let selection = null, loading = null, timer = null;
    wanted = steps[first];
    place.classList.add("time");
    const over = curveView(curve, place, { chosen: first, moved });
    place.append(views);

    // The views follow when the slider rests.
    function moved(index) {
      wanted = steps[index];
      page.changed();
      clearTimeout(timer);
      timer = setTimeout(() => load().then(() => status.say(""), status.fail), SETTLED);
    }

    // Computes and shows the views of the chosen step, in place of any that are on their way.
    async function load() {
      loading?.abort();
      const own = loading = new AbortController(), signal = AbortSignal.any([own.signal, stopped]);
      const step = wanted, received = await streamed("inside/analysis", { model, text, step }, signal, status, "layers");
      await nextTask();
      const data = unpacked(received);
      await nextTask();
      signal.throwIfAborted();
      const before = selection, kept = make("div");
      views.style.minHeight = `${views.offsetHeight}px`; // so that the page does not jump while the views are drawn
      views.replaceChildren(kept);
      selection = Object.assign(selectionFor(data.ids.length), { head: before?.head });
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
      selection.listen((token) => over.follow(token, quoted(tokenAt(data, token))));
    }

    stopped.addEventListener("abort", () => { clearTimeout(timer); over.end(); });
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
