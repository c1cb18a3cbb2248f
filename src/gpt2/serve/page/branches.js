// Texts that branch: a branch keeps some tokens of its parent and goes on with its own.

import { make, phrase } from "./inside/shared.js";

// A token: { id, bytes, logprob, top }, where top lists the likeliest tokens instead of it as { id, bytes, logprob }.
// A branch's ending is undefined while it is written, then what the API calls `finish_reason`, or null.
export function branchOf(parent, kept, tokens, run) {
  const branch = { parent, kept, tokens, children: [], run, ending: undefined };
  parent?.children.push(branch);
  return branch;
}

// All tokens after the prompt.
export function tokensOf(branch) {
  return branch.parent ? [...tokensOf(branch.parent).slice(0, branch.kept), ...branch.tokens] : branch.tokens;
}

// The branch itself or the one above it to which the token with an index belongs.
export function ownerOf(branch, index) {
  return branch.parent && index < branch.kept ? ownerOf(branch.parent, index) : branch;
}

// The branch and all below it.
export function* allOf(branch) {
  yield branch;
  for (const child of branch.children) yield* allOf(child);
}

// The bytes of a token's name in the API: text, or `bytes:\xe2\x82` for a part of a character.
export function bytesOf(name) {
  if (!/^bytes:(\\x[0-9a-f]{2})+$/.test(name)) return new TextEncoder().encode(name);
  return Uint8Array.from(name.slice(8).split("\\x"), (digits) => parseInt(digits, 16));
}

// The tokens of an object `logprobs` of the API.
export function tokensIn(logprobs) {
  return logprobs.token_ids.map((id, i) => ({
    id, bytes: bytesOf(logprobs.tokens[i]), logprob: logprobs.token_logprobs[i],
    top: logprobs.top_logprobs[i] === null ? [] : Object.entries(logprobs.top_logprobs[i])
      .map(([name, logprob]) => ({ id: logprobs.top_token_ids[i][name], bytes: bytesOf(name), logprob }))
      .sort((a, b) => b.logprob - a.logprob),
  }));
}

// Turns tokens into the texts that they complete, one after the other; a part of a character completes nothing.
export function completing() {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return (token) => decoder.decode(token.bytes, { stream: true });
}

// A single token as text: bytes that are not complete characters are written as \xe2.
export function nameOf({ bytes }) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return [...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
}

// The tree of all branches as nested lists of buttons; `open` is called with the branch of a button.
export function treeView(roots, current, open) {
  const item = (branch) => {
    const button = make("button", { type: "button", "aria-current": branch === current ? "true" : undefined, onclick: () => open(branch) },
      ...labelOf(branch));
    return make("li", {}, button, branch.children.length ? make("ul", {}, ...branch.children.map(item)) : null);
  };
  return make("ul", { class: "tree", "aria-label": "Branches" }, ...roots.map(item));
}

function labelOf(branch) {
  const text = completing(), shown = branch.tokens.slice(0, 12).map(text).join("");
  const where = branch.parent ? `from token ${branch.kept + 1}`
    : `${branch.run.prompt ? phrase(branch.run.prompt.slice(-16)) : "no prompt"}, seed ${branch.run.settings.seed}`;
  return [make("span", {}, shown ? phrase(shown) : "…"), make("small", {}, `${where} · ${branch.ending === undefined ? "writing …" : `${branch.tokens.length} tokens`}`)];
}
