// Signing in by a key, which stays in the page's memory.

import { h, icon, put } from "../js/dom.js";
import { errorCallout, field } from "../js/ui.js";

export function signInPage(root, { note, onSignIn }) {
  const key = h("input", { class: "input mono", type: "password", name: "softmux-key", autocomplete: "off", spellcheck: "false", required: true });
  const go = h("button", { class: "button primary", type: "submit" }, icon("key"), "Sign in");
  const wrong = h("div");
  async function submit(event) {
    event.preventDefault();
    go.disabled = true;
    put(wrong);
    try {
      await onSignIn(key.value.trim());
    } catch (error) {
      put(wrong, errorCallout(error, "Not signed in"));
      go.disabled = false;
      key.select();
    }
  }
  put(root, h("main", { class: "sign-in" }, h("form", { onsubmit: submit },
    h("div", { class: "brand" }, h("img", { src: "console/icon.svg", alt: "" }), "softmux"),
    h("div", { class: "words" }, h("h1", null, "Sign in"), h("p", { class: "muted small" }, note ?? "with the API key that you were given.")),
    field("Key", key, "It stays in this page's memory alone: reloading the page forgets it."),
    wrong, go)));
  key.focus();
}
