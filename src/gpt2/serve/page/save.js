// Saves what is shown as one HTML file that needs nothing else.

import { make } from "./inside/shared.js";

const POLICY = "default-src 'none'; style-src 'unsafe-inline'";

// The HTML of a page with some elements, in the style of this page.
export async function stillPage(title, elements) {
  const styles = await (await fetch("page/style.css")).text();
  const made = document.implementation.createHTMLDocument(title);
  made.documentElement.lang = "en";
  made.head.prepend(make("meta", { charset: "utf-8" }), make("meta", { "http-equiv": "Content-Security-Policy", content: POLICY }),
    make("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }));
  made.head.append(make("style", {}, styles));
  made.body.append(make("main", {}, ...elements));
  return `<!doctype html>\n${made.documentElement.outerHTML}\n`;
}

export function download(name, html) {
  const address = URL.createObjectURL(new Blob([html], { type: "text/html" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
