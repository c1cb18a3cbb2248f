// The settings of sampling: a slider and a number field for each, which always agree.

import { make } from "./inside/shared.js";

const FIELDS = {
  temperature: { label: "Temperature", min: 0, max: 2, most: 100, step: 0.05, start: 0.8, about: "0 always takes the likeliest token" },
  top_k: { label: "Top k", min: 0, max: 200, most: 1e6, step: 1, start: 0, about: "draws from the k likeliest tokens; 0 draws from all" },
  top_p: { label: "Top p", min: 0.01, max: 1, most: 1, step: 0.01, start: 1, about: "draws from the likeliest tokens whose probabilities add up to p" },
  max_tokens: { label: "Tokens", min: 1, max: 256, most: 1e6, step: 1, start: 60, about: "how many tokens are written at a time" },
};

const WRONG_SEED = "A seed is a whole number from 0 on; an empty field draws a new one.";

// An element with all settings: `values()` returns them, and `set(values)` changes some.
export function settingsView() {
  const inputs = {}, rows = [];
  for (const [name, { label, min, max, most, step, start, about }] of Object.entries(FIELDS)) {
    const slider = make("input", { type: "range", min, max, step, value: start, "aria-label": `${label}, slider` });
    const field = make("input", { type: "number", min, max: most, step: "any", value: start, id: `set-${name}`, "aria-describedby": `about-${name}` });
    slider.addEventListener("input", () => { field.value = slider.value; });
    field.addEventListener("input", () => { if (field.validity.valid) slider.value = field.value; });
    field.addEventListener("change", () => { if (field.value === "" || !field.validity.valid) field.value = slider.value; });
    inputs[name] = { slider, field };
    rows.push(make("div", { class: "setting" }, make("label", { for: `set-${name}` }, label), slider, field,
      make("small", { id: `about-${name}` }, about)));
  }
  const seed = make("input", { type: "number", min: 0, max: 2 ** 53 - 1, step: 1, id: "set-seed", placeholder: "new", "aria-describedby": "about-seed" });
  const aboutSeed = make("small", { id: "about-seed" });
  const tellSeed = () => {
    const isWrong = !seed.validity.valid;
    seed.setAttribute("aria-invalid", isWrong);
    aboutSeed.classList.toggle("failed", isWrong);
    aboutSeed.textContent = isWrong ? WRONG_SEED : "the same seed gives the same text; an empty field draws a new seed";
  };
  seed.addEventListener("input", tellSeed);
  tellSeed();
  rows.push(make("div", { class: "setting" }, make("label", { for: "set-seed" }, "Seed"), make("span"), seed, aboutSeed));
  const isWide = matchMedia("(min-width: 52rem)").matches;
  const element = make("details", { class: "settings", open: isWide }, make("summary", {}, "Settings"), ...rows);
  return {
    element,
    values() {
      const found = Object.fromEntries(Object.entries(inputs).map(([name, { field, slider }]) =>
        [name, field.validity.valid && field.value !== "" ? +field.value : +slider.value]));
      for (const name of ["top_k", "max_tokens"]) found[name] = Math.round(found[name]);
      return { ...found, seed: seed.value === "" || !seed.validity.valid ? null : +seed.value };
    },
    set(values) {
      for (const [name, { field, slider }] of Object.entries(inputs)) if (name in values) field.value = slider.value = values[name];
      if ("seed" in values) seed.value = values.seed ?? "";
      tellSeed();
    },
    // Throws an Error where the field of the seed holds something else.
    requireSeed() {
      if (seed.validity.valid) return;
      element.open = true;
      seed.focus();
      throw new Error(WRONG_SEED);
    },
    // Limits the number of tokens to the context of a model.
    limit(context) {
      inputs.max_tokens.slider.max = Math.min(512, context);
    },
  };
}
