// A lane of the playground: a task at a version, and what it answers.

import * as api from "./api.js";
import { combobox } from "./combobox.js";
import { h, icon, newId, put } from "./dom.js";
import { digest, method, percent, rate, seconds } from "./format.js";
import { session } from "./session.js";
import * as tasks from "./tasks.js";
import { bar, tokenView } from "./tokens.js";
import { callout, empty, errorCallout } from "./ui.js";

const BASE = "";
const CHOICES = 30;
const DRAWN_BARS = 12;

/** The tasks whose names begin so, the base model before them. */
async function choices(text, signal) {
  const prefix = text.toLowerCase();
  const [own, shared] = await Promise.all([tasks.page(false, { limit: CHOICES, prefix }, signal), tasks.page(true, { limit: CHOICES, prefix }, signal)]);
  const found = [...own.data, ...shared.data].map((one) => ({ value: one.task, label: one.task, note: method(one.method) }));
  return session.model.family !== "encoder" && "base model".startsWith(prefix) ? [{ value: BASE, label: "Base model", note: "no task" }, ...found] : found;
}

/** `onchange` is told when another task or version is taken; `onremove`, where given, is its button. */
export function lane({ named, signal, onchange, onremove }) {
  const picker = h("div");
  const versionPick = h("select", { class: "select", "aria-label": "Version", onchange: () => { number = versionPick.value; changed(); } });
  const id = newId("lane");
  const body = h("div", { class: "body", id, role: "region", "aria-label": "Answer", tabindex: "0" });
  const stats = h("div", { class: "stats", role: "status" });
  const node = h("section", { class: "card lane", "aria-label": "Answer of a task" }, h("div", { class: "head" }, picker, versionPick, onremove && h("button", { class: "button quiet square", type: "button", "aria-label": "Remove this side", onclick: onremove }, icon("close"))), body, stats);
  let task = BASE;
  let number = ""; // empty: the active one
  let versions = [];
  let stop = null;
  let parts = { text: null, tokens: null };
  let shownTokens = true;

  const version = () => (number ? versions.find((one) => String(one.version) === number) : versions.find((one) => one.active)) ?? versions[0] ?? null;
  const name = () => (task && number ? `${task}@${number}` : task);

  async function take(chosen) {
    [task, number] = chosen.split("@").length === 2 ? chosen.split("@") : [chosen, ""];
    versions = [];
    if (task !== BASE) {
      try {
        versions = await tasks.versions(task, signal);
      } catch (error) {
        if (error.name === "AbortError") return;
        put(body, errorCallout(error));
        task = BASE;
      }
    }
    draw();
    changed();
  }

  function draw() {
    const active = versions.find((one) => one.active);
    put(versionPick, task === BASE ? h("option", { value: "" }, "–") : [active && h("option", { value: "" }, `Active, v${active.version}`), versions.map((one) => h("option", { value: String(one.version) }, `v${one.version}`))]);
    versionPick.value = number;
    versionPick.disabled = task === BASE;
    put(picker, combobox({ label: "Task", value: task || "Base model", find: (text) => choices(text, signal), onpick: (choice) => take(choice.value), signal }));
  }

  function changed() {
    put(stats);
    put(body, h("p", { class: "faint small" }, version()?.notes ?? (task === BASE ? "The model as it is, without any task." : "The answer comes here.")));
    onchange();
  }

  /** How this task is called with what was asked: its route and body. */
  function call(asked) {
    const told = version();
    const slots = told?.template ? tasks.slotsOf(told.template) : [];
    const variables = Object.fromEntries(slots.map((slot) => [slot, asked.variables[slot] ?? asked.prompt]));
    if (told?.head || (asked.mode === "labels" && told && tasks.saysLabels(told))) {
      const body = { input: slots.length ? Object.values(variables)[0] : asked.prompt };
      if (told.head === "token") body.aggregation = "word";
      return { route: "v1/classify", task: name(), body };
    }
    const input = slots.length ? { variables } : asked.mode === "chat" ? { messages: [...(asked.system ? [{ role: "system", content: asked.system }] : []), { role: "user", content: asked.prompt }] } : { prompt: asked.prompt };
    return { route: "v1/generate", task: name(), body: { ...input, ...asked.sampling } };
  }

  async function run(asked) {
    stop?.abort();
    stop = new AbortController();
    signal.addEventListener("abort", () => stop.abort(), { once: true });
    const { route, task: called, body: json } = call(asked);
    put(stats);
    try {
      if (asked.mode === "labels" && route === "v1/generate") put(body, empty("info", "No labels", "This task names no labels for one text. Ask it for text."));
      else if (route === "v1/classify") await classify(called, json);
      else await generate(called, json);
    } catch (error) {
      if (error.name === "AbortError") {
        body.querySelector(".out")?.classList.remove("running");
        body.append(h("p", { class: "faint small", role: "status" }, "Stopped."));
        return;
      }
      if (!(error instanceof api.ApiError)) throw error;
      if (body.querySelector(".out")) body.querySelector(".out").classList.remove("running");
      else put(body);
      body.append(errorCallout(error, "No answer"));
    }
  }

  async function generate(called, json) {
    const began = performance.now();
    const out = h("div", { class: "out running" });
    const tokens = tokenView();
    parts = { text: out, tokens };
    put(body, out, tokens.node);
    showTokens(shownTokens);
    let firstAt = null;
    let last = null;
    for await (const event of api.events("v1/generate", { query: { task: called }, json: { ...json, stream: true }, signal: stop.signal })) {
      firstAt ??= performance.now();
      last = event;
      for (const choice of event.choices) {
        out.append(choice.text);
        if (choice.logprobs) tokens.add(choice.logprobs);
      }
      showTokens(shownTokens);
    }
    out.classList.remove("running");
    if (!out.textContent) out.append(h("span", { class: "faint" }, "(no text)"));
    warn(last.warnings);
    const taken = (performance.now() - firstAt) / 1000;
    const { usage, adapter } = last;
    tell([["first token", seconds((firstAt - began) / 1000)], ["tokens", usage.completion_tokens], usage.completion_tokens > 1 && ["per second", rate((usage.completion_tokens - 1) / taken)],
      ["cached", `${usage.cached_tokens} of ${usage.prompt_tokens + usage.virtual_tokens}`], ["ended by", { stop: "its own end", length: "length" }[last.choices[0].finish_reason] ?? "–"], adapter && [`v${adapter.version}`, digest(adapter.digest)]]);
  }

  async function classify(called, json) {
    const began = performance.now();
    put(body, h("p", { class: "faint small" }, "Reading…"));
    const reply = await api.call("POST", "v1/classify", { query: { task: called }, json, signal: stop.signal });
    const [result] = reply.results;
    put(body, result.tokens ? labelled(json.input, result.tokens) : scores(result));
    warn(reply.warnings);
    tell([["answered in", seconds((performance.now() - began) / 1000)], ["tokens", reply.usage.prompt_tokens], reply.adapter && [`v${reply.adapter.version}`, digest(reply.adapter.digest)]]);
  }

  /** What is odd about the request, as an input longer than what the version was trained on. */
  function warn(warnings = []) {
    if (warnings.length) body.append(callout("warn", "Not what it was trained on", warnings.map((words) => h("p", null, words))));
  }

  function tell(rows) {
    put(stats, rows.filter(Boolean).map(([words, value]) => h("span", null, `${words} `, h("b", null, value))));
  }

  /** Tokens with their colours, or the text alone. */
  function showTokens(wanted) {
    shownTokens = wanted;
    if (parts.text === null) return;
    const there = parts.tokens.length > 0;
    parts.text.hidden = wanted && there;
    parts.tokens.node.hidden = !(wanted && there);
  }

  take(named);
  return { node, run, call, version, showTokens, name, stop: () => stop?.abort(), isClassifier: () => Boolean(version()?.head) };
}

function scores(result) {
  const rows = Object.entries(result.scores).sort((a, b) => b[1] - a[1]);
  return [h("p", null, h("span", { class: "out" }, result.label)), h("ul", { class: "bars", "aria-label": "Scores" }, rows.slice(0, DRAWN_BARS).map(([label, score], i) => bar(label, score, percent(score, 1), i === 0)), rows.length > DRAWN_BARS && h("li", { class: "faint small" }, `and ${rows.length - DRAWN_BARS} more labels`))];
}

function labelled(text, tokens) {
  const letters = [...text]; // offsets count characters, not UTF-16 units
  const found = [];
  let at = 0;
  for (const token of tokens) {
    found.push(letters.slice(at, token.start).join(""), h("mark", { title: percent(token.score, 1) }, letters.slice(token.start, token.end).join(""), h("b", null, token.label)));
    at = token.end;
  }
  return h("div", { class: "labelled" }, found, letters.slice(at).join(""));
}
