// The playground: one input for one task, or for two side by side.

import { h, icon, put } from "../js/dom.js";
import { lane } from "../js/lane.js";
import { samples } from "../js/samples.js";
import { session, whenSignedOut } from "../js/session.js";
import * as tasks from "../js/tasks.js";
import { checkbox, copyButton, empty, field, pageHead, segmented } from "../js/ui.js";

const FIRST = { prompt: "", system: "", mode: "text", max_tokens: "64", temperature: "0", top_p: "1", seed: "", stop: "", logprobs: true };
const kept = {}; // for as long as one is signed in
const forget = () => Object.assign(kept, FIRST, { variables: {}, lanes: null });
forget();
whenSignedOut(forget);

export async function playPage(root, { query, signal }) {
  const wanted = query.get("task") ?? kept.lanes?.[0] ?? (await first(signal));
  const second = query.has("task") ? query.get("with") : kept.lanes?.[1];
  if (wanted === null) {
    put(root, pageHead("Playground"), h("section", { class: "card" }, empty("play", "Nothing to ask yet", "This base only classifies, by tasks that are published on it.", h("a", { class: "button", href: "#/upload" }, "Upload a task"))));
    return;
  }
  const lanes = [];
  const laneBox = h("div", { class: "lanes" });
  const inputs = h("div", { class: "stack" });
  const code = h("div", { class: "code" });
  const run = h("button", { class: "button primary", type: "button", onclick: ask }, icon("play"), "Run", h("kbd", { "aria-hidden": "true" }, "Ctrl ↵"));
  const stop = h("button", { class: "button", type: "button", hidden: true, onclick: () => lanes.forEach((one) => one.stop()) }, icon("stop"), "Stop");
  const compare = h("button", { class: "button", type: "button", onclick: () => add(lanes[0].name()) }, icon("compare"), "Compare");
  let language = "curl";
  let drawn = "";

  function add(named) {
    const made = lane({ named, signal, onchange: refresh, onremove: lanes.length ? () => drop(made) : null });
    lanes.push(made);
    laneBox.append(made.node);
    compare.hidden = lanes.length > 1;
    refresh();
  }

  function drop(one) {
    one.stop();
    lanes.splice(lanes.indexOf(one), 1);
    one.node.remove();
    compare.hidden = false;
    compare.focus();
    refresh();
  }

  /** What the lanes need: fields of templates' slots, and a prompt where a task has none, or one slot beside others. */
  function needs() {
    const told = lanes.map((one) => one.version());
    const templates = told.map((version) => (version?.template ? tasks.slotsOf(version.template) : null));
    const prompt = templates.some((slots) => slots === null);
    const slots = [...new Set(templates.filter((found) => found && !(prompt && found.length === 1)).flat())];
    return { prompt, slots, labels: told.some((version) => version && tasks.saysLabels(version)), plain: told.every((version) => !version?.template && !version?.head) };
  }

  function asked() {
    const sampling = { max_tokens: Number(kept.max_tokens) || 64, temperature: Number(kept.temperature) || 0 };
    if (Number(kept.top_p) !== 1) sampling.top_p = Number(kept.top_p);
    if (kept.seed !== "") sampling.seed = Number(kept.seed);
    if (kept.stop) sampling.stop = kept.stop.replaceAll("\\n", "\n");
    if (kept.logprobs) sampling.logprobs = 5;
    const { slots, labels, plain } = needs();
    const variables = Object.fromEntries(slots.map((slot) => [slot, kept.variables[slot] ?? ""]));
    const mode = (kept.mode === "labels" && !labels) || (kept.mode === "chat" && !plain) ? "text" : kept.mode;
    return { prompt: kept.prompt, system: kept.system, variables, mode, sampling };
  }

  function refresh() {
    if (signal.aborted || !lanes.length) return;
    kept.lanes = lanes.map((one) => one.name());
    const need = needs();
    const shape = JSON.stringify([need, kept.mode]);
    if (shape !== drawn) drawInputs(need);
    drawn = shape;
    drawCode();
  }

  function drawInputs({ prompt, slots, labels, plain }) {
    const modes = [["text", "Text"], ...(plain && session.model.family === "decoder" ? [["chat", "Chat"]] : []), ...(labels ? [["labels", "Labels"]] : [])];
    const mode = asked().mode;
    const area = (label, name, rows) => field(label, h("textarea", { class: "area", rows, value: kept[name], spellcheck: "false", oninput: (event) => { kept[name] = event.target.value; drawCode(); } }));
    put(inputs,
      modes.length > 1 && segmented("What is asked", modes, mode, (value) => { kept.mode = value; refresh(); }),
      mode === "chat" && area("System", "system", 2),
      prompt && area(mode === "chat" ? "Message" : "Prompt", "prompt", 6),
      slots.map((slot) => field(slot, h("input", { class: "input", autocomplete: "off", value: kept.variables[slot] ?? "", oninput: (event) => { kept.variables[slot] = event.target.value; drawCode(); } }), "A slot of the template.")));
  }

  function drawCode() {
    const call = lanes[0].call(asked());
    const found = samples({ base: document.baseURI.split("#")[0], ...call, keys: session.keys });
    put(code, h("pre", { tabindex: "0", "aria-label": "The same call" }, found[language]), copyButton(() => found[language], "Copy the call"));
  }

  async function ask() {
    if (!stop.hidden) return;
    run.hidden = true;
    stop.hidden = false;
    try {
      await Promise.all(lanes.map((one) => one.run(asked())));
    } finally {
      run.hidden = false;
      stop.hidden = true;
    }
  }

  const number = (label, name, more) => field(label, h("input", { class: "input num", type: "number", inputmode: "decimal", value: kept[name], ...more, oninput: (event) => { kept[name] = event.target.value; drawCode(); } }));
  const shown = checkbox("Log probabilities", kept.logprobs, (event) => { kept.logprobs = event.target.checked; drawCode(); });
  const view = segmented("Answer as", [["tokens", "Tokens"], ["text", "Text"]], "tokens", (value) => lanes.forEach((one) => one.showTokens(value === "tokens")));

  put(root, pageHead("Playground", "The same request as your program sends it, answered as it comes.", view, compare),
    h("div", { class: "play", onkeydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask(); } } },
      h("div", { class: "card pad ask" }, inputs,
        h("details", { class: "more" }, h("summary", null, icon("next"), "Sampling"), h("div", { class: "inside" },
          h("div", { class: "grid-2" }, number("Tokens at most", "max_tokens", { min: 1, step: 1 }), number("Temperature", "temperature", { min: 0, max: 100, step: 0.1 }), number("Top p", "top_p", { min: 0, max: 1, step: 0.05 }), number("Seed", "seed", { step: 1 })),
          field("Stop at", h("input", { class: "input mono", autocomplete: "off", value: kept.stop, oninput: (event) => { kept.stop = event.target.value; drawCode(); } }), "A text that ends the answer; \\n is a line's end."),
          shown.node)),
        h("div", { class: "actions" }, run, stop)),
      h("div", { class: "stack" }, laneBox,
        h("section", { class: "card", "aria-label": "The same call as code" }, h("div", { class: "head" }, h("h2", null, "The same call"), segmented("Language", [["curl", "curl"], ["python", "Python"]], language, (value) => { language = value; drawCode(); })), code))));
  add(wanted);
  if (second !== null && second !== undefined) add(second);
}

/** The first task there is; the base model, where it generates, if there is none. */
async function first(signal) {
  const { data } = await tasks.page(false, { limit: 1 }, signal);
  return data[0]?.task ?? (session.model.family === "encoder" ? null : "");
}
