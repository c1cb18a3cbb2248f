// Requests to the server that this page comes from, with its API key where it needs one.

import { make } from "./inside/shared.js";

const KEY = "gpt2-api-key";
let asking = null;

// Fields of requests as the page calls them.
const NAMES = { text: "the text", against: "the second text", prompt: "the prompt", temperature: "the temperature", top_k: "top k",
  top_p: "top p", max_tokens: "the number of tokens", seed: "the seed" };

// The answer to a request, which is a POST of a JSON object where `body` is given. Throws an Error that says what is
// wrong, and an AbortError where `signal` ends it.
export async function ask(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY), headers = key ? { Authorization: `Bearer ${key}` } : {};
    let answer;
    try {
      answer = await fetch(path, body === undefined ? { headers, signal }
        : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
    } catch (error) {
      throw ended(error);
    }
    if (answer.ok) return answer;
    const failed = await answer.json().catch(() => null);
    if (answer.status !== 401) throw new Error(failed?.error ? explained(failed.error) : `The server answers with status ${answer.status}.`);
    asking ??= askForKey(key !== null).finally(() => { asking = null; });
    await asking;
  }
}

// The error of a connection in words; an aborted one stays what it is.
function ended(error) {
  return error.name === "AbortError" ? error : new Error("The server does not answer. Is it still running?");
}

// An error of the API in sentences that name what is on the page instead of the field of a request.
function explained({ message, param }) {
  const name = NAMES[param] ?? "", bare = message.startsWith(`${param}: `) ? message.slice(param.length + 2) : message;
  const named = !name ? bare : /^[A-Z]/.test(bare) ? `${name}: ${bare}` : bare.replace(/^the prompt .*? cannot be encoded: /s, "")
    .replace(/\bthe text\b/g, name).replace(new RegExp(`^${param} `), `${name} `);
  const sentences = named.replace(/\.$/, "").split("; ").map((part) => (/^[a-z]+ /.test(part) ? part[0].toUpperCase() + part.slice(1) : part));
  return `${sentences.join(". ")}.`;
}

// The events of a streamed answer. Throws an Error for one that says what went wrong.
export async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];
  for (;;) {
    const { done, value } = await reader.read().catch((error) => { throw ended(error); });
    if (done) throw new Error("The server ended the answer before it was complete.");
    let start = 0;
    for (let end; (end = value.indexOf("\n", start)) >= 0; start = end + 1) {
      const line = pieces.join("") + value.slice(start, end);
      pieces = [];
      if (line === "data: [DONE]") return;
      if (!line.startsWith("data: ")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(explained(event.error));
      yield event;
    }
    pieces.push(value.slice(start));
  }
}

// Asks the user for the API key, and keeps it until the tab is closed.
function askForKey(wasWrong) {
  const field = make("input", { type: "password", autocomplete: "off", required: true, id: "key",
    pattern: "\\s*[!-~]+\\s*", title: "A key has letters, digits and signs of ASCII, without spaces." });
  const dialog = make("dialog", { "aria-labelledby": "key-title" },
    make("h2", { id: "key-title" }, "API key"),
    make("p", {}, wasWrong ? "The server does not accept this key. Give another one." : "This server needs its API key. It is kept until you close this tab."),
    make("form", { method: "dialog" }, make("label", { for: "key" }, "Key"), field,
      make("p", { class: "buttons" }, make("button", { class: "main", value: "given" }, "Use the key"),
        make("button", { formnovalidate: true, value: "" }, "Cancel"))));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve, reject) => dialog.addEventListener("close", () => {
    dialog.remove();
    if (dialog.returnValue !== "given") return reject(new Error("The server needs its API key."));
    sessionStorage.setItem(KEY, field.value.trim());
    resolve();
  }));
}

// An element that shows what goes on: `say` a remark, or `fail` with an error until `excuse` removes it, because what was
// wrong has been changed. An aborted request is no error.
export function statusLine() {
  const element = make("p", { class: "status", role: "status" });
  return {
    element,
    say: (text) => { element.classList.remove("failed"); element.textContent = text; },
    fail: (error) => {
      if (error.name === "AbortError") return;
      element.classList.add("failed");
      element.textContent = error.message;
    },
    excuse: () => { if (element.classList.contains("failed")) element.textContent = ""; },
  };
}
