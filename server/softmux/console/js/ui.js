// The parts that pages share: messages, dialogs, buttons that copy, what stands where there is nothing yet.

import { h, icon, newId, put } from "./dom.js";
import { digest as shortDigest } from "./format.js";

const SHOWN_MS = 5000;

/** A word at the edge of the page, read out by screen readers, that goes by itself. */
export function toast(message, kind = "good") {
  const said = h("div", { class: `toast ${kind}` }, icon(kind === "good" ? "check" : "bad"), h("span", null, message));
  document.getElementById("toasts").append(said);
  setTimeout(() => said.remove(), SHOWN_MS);
}

export function callout(kind, title, ...children) {
  const name = { good: "check", warn: "warn", bad: "bad", info: "info" }[kind];
  return h("div", { class: `callout ${kind}`, role: kind === "bad" ? "alert" : null }, icon(name), h("div", { class: "words" }, h("strong", null, title), children));
}

const DO = {
  unauthorized: "Sign in with a key that is valid.",
  forbidden: "Ask an administrator for a key of the role that this takes.",
  unreachable: null,
  rate_limited: "Wait a little, then try again.",
  engine_down: "The engine is being started again; try again in some seconds.",
  registry_down: "What is being served goes on. Changes can be made once the registry is back.",
  overloaded: "Try again in a moment.",
};

/** An error in words: what the server said of it, where it is, and what to do where that is not said. */
export function errorCallout(error, title = "That did not work") {
  return callout("bad", title, h("p", null, error.message), error.param && h("p", { class: "small" }, "Where: ", h("code", null, error.param)), DO[error.code] && h("p", { class: "small muted" }, DO[error.code]));
}

export function empty(name, title, words, ...actions) {
  return h("div", { class: "empty" }, h("div", { class: "mark" }, icon(name)), h("h2", null, title), h("p", null, words), actions);
}

export function skeletons(lines = 6) {
  return h("div", { class: "skeletons", "aria-busy": "true" }, h("span", { class: "hidden-text" }, "Loading"), Array.from({ length: lines }, () => h("span", { class: "skeleton" })));
}

export const badge = (text, kind = "") => h("span", { class: `badge ${kind}` }, text);

/** Browsers offer the clipboard to pages by TLS or of this machine alone; others copy what is selected. */
async function toClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "hidden-text", value: text, "aria-hidden": "true" });
  const button = document.activeElement;
  button.after(area); // beside the button: a dialog lets nothing outside it be selected
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  button.focus();
  if (!done) throw new Error("not copied");
}

export function copyButton(text, label) {
  const button = h("button", { class: "copy", type: "button", "aria-label": label, title: label, onclick: copy }, icon("copy"));
  async function copy(event) {
    event.stopPropagation();
    try {
      await toClipboard(typeof text === "function" ? text() : text);
      put(button, icon("check"));
      toast("Copied");
      setTimeout(() => put(button, icon("copy")), 1500);
    } catch {
      toast("The browser does not let this page copy; select the text instead.", "bad");
    }
  }
  return button;
}

export function digestView(value) {
  return h("span", { class: "digest", title: value }, h("span", null, shortDigest(value)), copyButton(value, "Copy the digest"));
}

/** A field with its label, and what goes with it. */
export function field(label, control, hint) {
  const id = newId("field");
  control.id = id;
  const told = hint && h("span", { class: "hint", id: `${id}-hint` }, hint);
  if (told) control.setAttribute("aria-describedby", told.id);
  return h("div", { class: "field" }, h("label", { for: id }, label), control, told);
}

export function checkbox(label, checked = false, onchange = null) {
  const box = h("input", { type: "checkbox", onchange });
  box.checked = checked;
  return { box, node: h("label", { class: "check" }, box, label) };
}

/** Buttons of which one is pressed. `choices` are [value, label]; `onpick` gets the value. */
export function segmented(label, choices, chosen, onpick) {
  const group = h("div", { class: "tabs", role: "group", "aria-label": label });
  function show(value) {
    for (const button of group.children) button.setAttribute("aria-pressed", String(button.dataset.value === value));
  }
  put(group, choices.map(([value, text]) => h("button", { type: "button", "data-value": value, onclick: () => { show(value); onpick(value); } }, text)));
  show(chosen);
  return group;
}

/** A dialog of a form. `act` runs on its button, and may raise an `ApiError`, which is then shown; what it returns comes
 * back, or null where the dialog was left. Where `typed` is given, it must be written first. */
export function ask({ title, words = [], fields = [], action, danger = false, typed = null, act = async () => true }) {
  const opener = document.activeElement;
  return new Promise((resolve) => {
    const id = newId("dialog");
    const wrong = h("div");
    const go = h("button", { class: `button ${danger ? "danger solid" : "primary"}`, type: "submit" }, action);
    const name = typed === null ? null : h("input", { class: "input", autocomplete: "off", spellcheck: "false", oninput: check });
    let result = null;
    const dialog = h("dialog", { "aria-labelledby": id },
      h("form", { onsubmit: submit },
        h("div", { class: "words" }, h("h2", { id }, title), words.map((word) => h("p", null, word))),
        fields,
        name && field(`Type ${typed} to confirm`, name),
        wrong,
        h("div", { class: "actions" }, h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel"), go)));
    function check() {
      go.disabled = name !== null && name.value !== typed;
    }
    async function submit(event) {
      event.preventDefault();
      go.disabled = true;
      try {
        result = await act();
        dialog.close();
      } catch (error) {
        put(wrong, errorCallout(error));
        go.disabled = false;
      }
    }
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (opener?.isConnected) opener.focus();
      resolve(result);
    });
    check();
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A table whose rows are cards on a phone. `columns` are [label, class]; each row is its cells. */
export function table(label, columns, rows) {
  return h("div", { class: "scroll" }, h("table", { class: "table", "aria-label": label },
    h("thead", null, h("tr", null, columns.map(([text, kind]) => h("th", { scope: "col", class: kind }, text || h("span", { class: "hidden-text" }, "Actions"))))),
    h("tbody", null, rows.map((cells) => h("tr", null, cells.map((cell, i) => h("td", { class: columns[i][1], "data-label": columns[i][0] && !columns[i][1]?.includes("name") ? columns[i][0] : null }, cell)))))));
}

export function pageHead(title, words, ...actions) {
  return h("div", { class: "page-head" }, h("div", { class: "words" }, h("h1", { tabindex: "-1" }, title), words && h("p", null, words)), actions.length ? h("div", { class: "actions" }, actions) : null);
}

/** Hands a blob to the browser as a file. */
export function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
