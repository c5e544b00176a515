// A text field with a list of what is there: by ARIA's combobox pattern, keyboard first.

import { h, newId, put } from "./dom.js";

const WAIT_MS = 120;

/** `find(text)` gives the choices as `{value, label, note}`; `onpick(choice)` is told which was taken. */
export function combobox({ label, placeholder, value = "", find, onpick, signal }) {
  const id = newId("list");
  const list = h("ul", { id, role: "listbox", "aria-label": label, hidden: true });
  const input = h("input", {
    class: "input", role: "combobox", "aria-label": label, "aria-expanded": "false", "aria-controls": id, "aria-autocomplete": "list",
    autocomplete: "off", spellcheck: "false", placeholder, value, oninput: () => later(), onfocus: () => { input.select(); open(""); },
    onkeydown, onblur: () => close(true),
  });
  let choices = [];
  let at = -1;
  let picked = value;
  let waiting = null;
  let asked = 0;

  function later() {
    clearTimeout(waiting);
    waiting = setTimeout(() => open(input.value), WAIT_MS);
  }

  async function open(text) {
    asked += 1;
    const mine = asked;
    const found = await find(text.trim()).catch(() => []);
    if (mine !== asked || document.activeElement !== input || signal?.aborted) return;
    choices = found;
    at = Math.max(0, choices.findIndex((choice) => choice.value === picked));
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    draw();
  }

  function draw() {
    put(list, choices.length ? choices.map((choice, i) => h("li", { id: `${id}-${i}`, role: "option", "aria-selected": String(i === at), onmousedown: (event) => { event.preventDefault(); take(choice); } }, h("span", null, choice.label), h("span", { class: "faint" }, choice.note)))
      : h("li", { class: "none", role: "option", "aria-disabled": "true", "aria-selected": "false" }, "No task begins so"));
    if (choices.length) {
      input.setAttribute("aria-activedescendant", `${id}-${at}`);
      list.children[at]?.scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  }

  function close(restore) {
    asked += 1;
    clearTimeout(waiting);
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    if (restore) input.value = picked;
  }

  function take(choice) {
    picked = choice.label;
    input.value = choice.label;
    close(false);
    onpick(choice);
  }

  function onkeydown(event) {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) return open("");
      at = (at + (event.key === "ArrowDown" ? 1 : choices.length - 1)) % Math.max(1, choices.length);
      draw();
    } else if (event.key === "Enter" && !list.hidden && choices[at]) {
      event.preventDefault();
      take(choices[at]);
    } else if (event.key === "Escape" && !list.hidden) {
      event.preventDefault();
      close(true);
    }
  }

  return h("div", { class: "combo" }, input, list);
}
