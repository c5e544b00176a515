// Dark, light, or as the system has it. The choice alone is kept in the browser.

import { h, icon, put } from "./dom.js";

const NAME = "softmux-theme";
const ORDER = ["auto", "light", "dark"];
const SAYS = { auto: ["auto", "Theme: as the system"], light: ["sun", "Theme: light"], dark: ["moon", "Theme: dark"] };

function kept() {
  try {
    return ORDER.includes(localStorage.getItem(NAME)) ? localStorage.getItem(NAME) : "auto";
  } catch {
    return "auto"; // storage may be closed to this page
  }
}

export function applyTheme(theme = kept()) {
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", theme);
}

export function themeButton() {
  const button = h("button", { class: "button quiet square small", type: "button", onclick: turn });
  let theme = kept();
  function show() {
    const [name, label] = SAYS[theme];
    button.setAttribute("aria-label", label);
    button.title = label;
    put(button, icon(name));
  }
  function turn() {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    try {
      localStorage.setItem(NAME, theme);
    } catch {
      // then it holds until the page is left
    }
    applyTheme(theme);
    show();
  }
  show();
  return button;
}
