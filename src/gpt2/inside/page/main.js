// The page of `gpt2 lens`: its data is JSON in the element `data`.

import { showAnalysis } from "./analysis.js";

showAnalysis(JSON.parse(document.getElementById("data").textContent), document.getElementById("analysis"));
