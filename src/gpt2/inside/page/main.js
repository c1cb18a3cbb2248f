// The page of `gpt2 lens`: its data is JSON in the element `data`.

import { showAnalysis } from "./analysis.js";
import { nextTask } from "./shared.js";

await nextTask();
const received = JSON.parse(document.getElementById("data").textContent);
await nextTask();
showAnalysis(received, document.getElementById("analysis"));
