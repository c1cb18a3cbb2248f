// The state of the page in the fragment of its address: #Tab/token/state, with the state as compressed JSON.

// A value as text of letters, digits, - and _.
export async function packed(value) {
  const bytes = await piped(new TextEncoder().encode(JSON.stringify(value)), new CompressionStream("deflate-raw"));
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

// The value of such a text. Throws an Error for any other text.
export async function unpackedState(text) {
  try {
    const bytes = Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (character) => character.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(await piped(bytes, new DecompressionStream("deflate-raw"))));
  } catch {
    throw new Error("The link is not complete, so its state cannot be restored.");
  }
}

async function piped(bytes, through) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(through)).arrayBuffer());
}

// The parts of a fragment: { tab, token, state }, each null where it is missing.
export function partsOf(fragment) {
  const [tab, token, state] = fragment.replace(/^#/, "").split("/");
  return { tab: tab || null, token: /^\d+$/.test(token ?? "") ? +token : null, state: state || null };
}
