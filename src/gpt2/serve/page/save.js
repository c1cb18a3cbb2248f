// Saves what is shown as one HTML file that needs nothing else.

import { ask } from "./api.js";
import { make } from "./inside/shared.js";

const POLICY = "default-src 'none'; style-src 'unsafe-inline'";

// The HTML of a page with some elements, in the style of this page.
export async function stillPage(title, elements) {
  const styles = await (await ask("page/style.css")).text();
  const head = make("head", {}, make("meta", { charset: "utf-8" }), make("meta", { "http-equiv": "Content-Security-Policy", content: POLICY }),
    make("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }), make("title", {}, title));
  // an element with styles would be one of this page, whose policy refuses it
  return `<!doctype html>\n<html lang="en"><head>${head.innerHTML}<style>${styles}</style></head><body>${make("main", {}, ...elements).outerHTML}</body></html>\n`;
}

export function download(name, html) {
  const address = URL.createObjectURL(new Blob([html], { type: "text/html" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
