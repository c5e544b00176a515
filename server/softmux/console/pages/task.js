// One task: what it is, its versions, who else may use it, and its end.

import { h, icon, put } from "../js/dom.js";
import { ago, bytes, compact, count, date, method } from "../js/format.js";
import { may } from "../js/session.js";
import * as tasks from "../js/tasks.js";
import { ask, badge, callout, digestView, errorCallout, pageHead, save, table, toast } from "../js/ui.js";
import { sharing } from "./sharing.js";

export const sharedTaskPage = (root, { parts: [owner, task], signal }) => show(root, `${owner}/${task}`, signal);
export const taskPage = (root, { parts: [task], signal }) => show(root, task, signal);

async function show(root, task, signal) {
  const own = !task.includes("/");
  const versions = await tasks.versions(task, signal);
  const active = versions.find((version) => version.active) ?? null;
  const told = active ?? versions[0];
  const manages = own && may("publisher");
  const again = () => show(root, task, signal);

  put(root,
    h("a", { class: "crumb", href: own ? "#/tasks" : "#/tasks?whose=shared" }, icon("back"), "Tasks"),
    pageHead(task, told.notes,
      active && h("a", { class: "button primary", href: `#/play?task=${encodeURIComponent(task)}` }, icon("play"), "Try it"),
      versions.length > 1 && active && h("a", { class: "button", href: `#/play?task=${encodeURIComponent(task)}&with=${encodeURIComponent(`${task}@${versions.find((one) => !one.active).version}`)}` }, icon("compare"), "Compare"),
      manages && h("a", { class: "button", href: `#/upload?task=${encodeURIComponent(task)}` }, icon("upload"), "New version")),
    active === null && callout("warn", "No version is active", h("p", null, "Requests that name the task alone are refused. Activate a version that was made for this base.")),
    told.warnings.length > 0 && callout("warn", `Served, with ${told.warnings.length === 1 ? "a warning" : "warnings"}`, h("ul", null, told.warnings.map((warning) => h("li", null, warning)))),
    h("div", { class: "split" },
      h("div", { class: "stack" },
        told.template !== null && h("section", { class: "card pad" }, h("h2", null, "Template"), templateView(told.template)),
        h("section", { class: "card" }, h("div", { class: "head" }, h("h2", null, "Versions"), h("span", { class: "faint small" }, count(versions.length))), versionTable(versions, active, manages ? (version) => activate(task, version, active, again) : null)),
        files(task, told)),
      h("div", { class: "stack" },
        h("section", { class: "card pad" }, h("h2", null, "About"), facts(told)),
        tasks.labelNames(told).length > 0 && h("section", { class: "card pad" }, h("h2", null, "Labels"), h("div", { class: "row" }, tasks.labelNames(told).map((name) => badge(name)))),
        own && await sharing(task, manages, signal),
        manages && h("section", { class: "card pad" }, h("h2", null, "Delete"), h("p", { class: "muted small" }, "All versions go. What runs on them ends well, and no later version has their numbers."),
          h("button", { class: "button danger", type: "button", onclick: () => remove(task, versions.length) }, icon("trash"), "Delete this task")))));
}

export function templateView(template) {
  return h("div", { class: "template" }, tasks.templatePieces(template).map((piece) => {
    if (piece.slot) return h("mark", null, piece.slot);
    return piece.learned === undefined ? piece.text : h("mark", { class: "learned", title: `${piece.learned} learned tokens` }, `${piece.learned} learned`);
  }));
}

function facts(version) {
  const lengths = version.trained_lengths;
  const rows = [
    ["Method", method(version.method)],
    ["Answers with", version.head === "sequence" ? "a label" : version.head === "token" ? "labels of tokens" : tasks.labelNames(version).length ? "text, or a label" : "text"],
    ["Learned tokens", count(version.virtual_tokens)],
    ["Parameters", h("span", { title: count(version.parameters) }, compact(version.parameters))],
    ["Size", bytes(version.bytes)],
    ["Trained on", lengths && `${count(lengths[0])} to ${count(lengths[1])} tokens`],
    ["Combines", version.combines && "with others that do"],
    ["Base, as named", version.base_model_name_or_path],
    ["Base", digestView(version.base_fingerprint)],
  ];
  return h("dl", { class: "facts" }, rows.filter(([, value]) => value).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}

function versionTable(versions, active, pick) {
  return table("Versions", [["Version", "name"], ["Digest", ""], ["Method", ""], ["Size", "right num"], ["Uploaded", "right"], ["", "right"]], versions.map((version) => [
    h("span", { class: "row" }, `v${version.version}`, version.active && badge("Active", "good"), version.warnings.length > 0 && badge(version.warnings.length === 1 ? "1 warning" : `${version.warnings.length} warnings`, "warn")),
    digestView(version.digest),
    method(version.method),
    bytes(version.bytes),
    h("span", { class: "muted", title: date(version.created_at) }, ago(version.created_at)),
    pick && !version.active ? h("button", { class: "button small", type: "button", onclick: () => pick(version) }, active && version.version < active.version ? `Roll back to v${version.version}` : `Activate v${version.version}`) : null,
  ]));
}

function files(task, version) {
  async function fetchFile(name, button) {
    button.disabled = true;
    try {
      save(await tasks.file(task, version.version, name), name);
    } catch (error) {
      toast(error.message, "bad");
    }
    button.disabled = false;
  }
  return h("section", { class: "card" }, h("div", { class: "head" }, h("h2", null, `Files of v${version.version}`)),
    table("Files", [["Name", "name"], ["Size", "right num"], ["SHA-256", ""], ["", "right"]], version.files.map((file) => [
      h("code", null, file.name), bytes(file.bytes), digestView(file.sha256),
      h("button", { class: "button small", type: "button", "aria-label": `Download ${file.name}`, onclick: (event) => fetchFile(file.name, event.currentTarget) }, icon("download"), "Download"),
    ])));
}

async function activate(task, version, active, again) {
  const back = active !== null && version.version < active.version;
  const done = await ask({
    title: back ? `Roll back to v${version.version}?` : `Activate v${version.version}?`,
    words: ["The next request is answered by it. Requests that run end on the version they began with."],
    action: back ? "Roll back" : "Activate",
    act: () => tasks.activate(task, version.version),
  });
  if (done === null) return;
  toast(`${task} is at v${version.version} now`);
  await again();
}

async function remove(task, number) {
  const done = await ask({
    title: `Delete ${task}?`,
    words: [`${number === 1 ? "Its one version goes" : `All ${number} versions go`}, and can't be had back.`],
    action: "Delete", danger: true, typed: task,
    act: async () => { await tasks.remove(task); return true; },
  });
  if (done === null) return;
  toast(`${task} is deleted`);
  location.hash = "#/tasks";
}
