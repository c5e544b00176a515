// Tokens coloured by how likely they were, and what else was likely there.

import { h, put, s } from "./dom.js";
import { percent } from "./format.js";

const LEVELS = [[0.9, "90 % or more"], [0.6, "60 to 90 %"], [0.3, "30 to 60 %"], [0.1, "10 to 30 %"], [0, "below 10 %"]];
const heat = (probability) => LEVELS.findIndex(([least]) => probability >= least);

/** Whitespace made visible, for where a token stands alone. */
export const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";

/** A horizontal bar of `part` (0 to 1), with its words. */
export function bar(name, part, value, first = false) {
  const width = Math.max(0, Math.min(1, part)) * 100;
  return h("li", { class: `bar${first ? " first" : ""}` }, h("span", { class: "mono", title: name }, name),
    s("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, s("rect", { width, height: 8 })), h("span", { class: "num" }, value));
}

/** A growing list of tokens. `add` takes the `logprobs` of a chunk. Arrow keys go from one to the next. */
export function tokenView() {
  const inspect = h("div", { class: "inspect", role: "status", hidden: true });
  const list = h("div", { class: "tokens", role: "group", "aria-label": "Tokens, by how likely each was", onkeydown });
  const tokens = [];

  function show(at) {
    const { text, logprob, top } = tokens[at];
    for (const button of list.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button === tokens[at].button));
      button.tabIndex = button === tokens[at].button ? 0 : -1;
    }
    inspect.hidden = false;
    const rows = Object.entries(top).sort((a, b) => b[1] - a[1]);
    put(inspect, h("p", null, h("b", { class: "mono" }, visible(text)), ` had ${percent(Math.exp(logprob), 1)} (log probability ${logprob.toFixed(2)})`),
      rows.length > 0 && h("ul", { class: "bars", "aria-label": "What was likeliest here" }, rows.map(([other, value]) => bar(visible(other), Math.exp(value), percent(Math.exp(value), 1), other === text))));
  }

  function onkeydown(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const at = tokens.findIndex(({ button }) => button === document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    tokens[Math.max(0, Math.min(tokens.length - 1, at + step))].button.focus();
  }

  return {
    node: h("div", { class: "stack" }, list, h("div", { class: "legend", "aria-hidden": "true" }, LEVELS.map(([, words], i) => h("span", null, h("i", { class: "token", "data-heat": i }), words))), inspect),
    get length() {
      return tokens.length;
    },
    add(logprobs) {
      logprobs.tokens.forEach((text, i) => {
        const logprob = logprobs.token_logprobs[i];
        const at = tokens.length;
        const button = h("button", { class: "token", type: "button", "data-heat": heat(Math.exp(logprob)), "aria-pressed": "false", tabindex: at ? -1 : 0,
          "aria-label": `${text.trim() || visible(text)}, ${percent(Math.exp(logprob))}`, onclick: () => show(at), onfocus: () => show(at), onmouseenter: () => show(at) }, text === "\n" ? "↵" : text.replaceAll("\n", "↵"));
        tokens.push({ text, logprob, top: logprobs.top_logprobs?.[i] ?? {}, button });
        list.append(button);
        if (text.includes("\n")) list.append(h("span", { class: "break" }));
      });
    },
  };
}
