// All tasks: one's own, and those that other tenants share.

import { h, icon, put } from "../js/dom.js";
import { ago, bytes, count, date, method } from "../js/format.js";
import { may } from "../js/session.js";
import * as tasks from "../js/tasks.js";
import { badge, digestView, empty, errorCallout, pageHead, segmented, skeletons, table } from "../js/ui.js";

const AT_ONCE = 200;
const WAIT_MS = 200;

export async function tasksPage(root, { query, signal }) {
  let shared = query.get("whose") === "shared";
  let found = await tasks.page(shared, { limit: AT_ONCE }, signal);
  let all = found; // without a search
  let waiting = null;
  const list = h("section", { class: "card", "aria-label": "Tasks" });
  const said = h("span", { class: "faint small", role: "status" });
  const search = h("input", { class: "input", type: "search", "aria-label": "Search tasks", placeholder: "Search", autocomplete: "off", spellcheck: "false", oninput: searchLater });

  function searchLater() {
    clearTimeout(waiting);
    waiting = setTimeout(refresh, WAIT_MS);
  }

  /** Few tasks are searched here, anywhere in their words; of many the server is asked, by the beginning of a name. */
  async function refresh() {
    const text = search.value.trim().toLowerCase();
    try {
      if (all.next_cursor === null || !text) found = { data: all.data.filter((one) => matches(one, text)), next_cursor: text ? null : all.next_cursor };
      else found = await tasks.page(shared, { limit: AT_ONCE, prefix: text }, signal);
      draw();
    } catch (error) {
      if (error.name !== "AbortError") put(list, h("div", { class: "card pad" }, errorCallout(error)));
    }
  }

  async function turn(value) {
    shared = value === "shared";
    search.value = "";
    put(list, skeletons());
    try {
      all = await tasks.page(shared, { limit: AT_ONCE }, signal);
      refresh();
    } catch (error) {
      if (error.name !== "AbortError") put(list, h("div", { class: "card pad" }, errorCallout(error)));
    }
  }

  async function more() {
    const next = await tasks.page(shared, { limit: AT_ONCE, cursor: found.next_cursor, prefix: search.value.trim().toLowerCase() }, signal);
    found = { data: [...found.data, ...next.data], next_cursor: next.next_cursor };
    if (!search.value.trim()) all = found;
    draw();
  }

  function draw() {
    const number = found.data.length;
    put(said, `${count(number)}${found.next_cursor ? "+" : ""} ${number === 1 ? "task" : "tasks"}`);
    put(list, number ? [
      table("Tasks", [["Name", "name"], ["Active", ""], ["Method", ""], ["Digest", ""], ["Size", "right num"], ["Since", "right"]], found.data.map(row)),
      found.next_cursor && h("div", { class: "card pad" }, h("button", { class: "button", type: "button", onclick: more }, "Show more")),
    ] : nothing());
  }

  function nothing() {
    if (search.value.trim()) return empty("search", "No task like that", all.next_cursor === null ? "No name, note or method has these words." : "No name begins so. With this many tasks the search goes by the beginning of a name.");
    if (shared) return empty("tasks", "Nothing is shared with you", "When another tenant shares a task with yours, it stands here.");
    return empty("tasks", "No tasks yet", "A task is a soft prompt, a LoRA or a head that PEFT saved. Upload its folder, and it answers the next request.", may("publisher") && h("a", { class: "button primary", href: "#/upload" }, icon("upload"), "Upload a task"));
  }

  put(root,
    pageHead("Tasks", "What answers on this base model, each with its versions.",
      h("a", { class: "button", href: "#/play" }, icon("play"), "Playground"),
      may("publisher") && h("a", { class: "button primary", href: "#/upload" }, icon("upload"), "Upload")),
    h("div", { class: "row apart" },
      h("div", { class: "row" }, h("div", { class: "search" }, icon("search"), search), said),
      segmented("Whose tasks", [["own", "Yours"], ["shared", "Shared with you"]], shared ? "shared" : "own", turn)),
    list);
  draw();
}

function matches(version, text) {
  return !text || [version.task, version.notes ?? "", version.method, method(version.method), version.digest].some((words) => words.toLowerCase().includes(text));
}

function row(version) {
  return [
    [h("a", { href: tasks.address(version.task) }, version.task), version.notes && h("span", { class: "note", title: version.notes }, version.notes)],
    h("span", { class: "num" }, `v${version.version}`),
    h("span", { class: "row" }, badge(method(version.method)), version.head && badge("Classifier", "accent")),
    digestView(version.digest),
    bytes(version.bytes),
    h("time", { datetime: new Date(version.created_at * 1000).toISOString(), title: date(version.created_at), class: "muted" }, ago(version.created_at)),
  ];
}
