// Uploading a folder that PEFT saved, and what the server found about it.

import { h, icon, put } from "../js/dom.js";
import { bytes, method } from "../js/format.js";
import { may } from "../js/session.js";
import * as tasks from "../js/tasks.js";
import { callout, checkbox, empty, errorCallout, field, pageHead, toast } from "../js/ui.js";

const NEEDED = ["adapter_config.json", "adapter_model.safetensors"];
const TAKEN = [...NEEDED, "softmux.json", "adapter_config.lora.json", "adapter_model.lora.safetensors"];
const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;
const TITLES = {
  invalid_adapter: "Refused: these files can't be served", base_mismatch: "Made for another base model", too_large: "Too large for this server",
  quota_exceeded: "Your tenant has no room for it", forbidden: "Your key may not upload", rate_limited: "Too many at once",
};

export async function uploadPage(root, { query, signal }) {
  if (!may("publisher")) {
    put(root, pageHead("Upload"), h("section", { class: "card" }, empty("key", "Your key does not upload", "This takes a key of the role publisher. An administrator of this server makes one.")));
    return;
  }
  let chosen = []; // of the files that an adapter has
  let ignored = [];
  const name = h("input", { class: "input mono", autocomplete: "off", spellcheck: "false", maxlength: "64", value: query.get("task") ?? "", oninput: check });
  const wrongName = h("p", { class: "wrong small", role: "status" });
  const active = checkbox("Answer with it at once", true);
  const listed = h("div");
  const go = h("button", { class: "button primary", type: "submit", disabled: true }, icon("upload"), "Upload");
  const report = h("div", { "aria-live": "polite" });
  const picker = h("input", { type: "file", multiple: true, hidden: true, "aria-label": "Files of an adapter", onchange: () => take([...picker.files], "") });
  const folderPicker = h("input", { type: "file", webkitdirectory: true, hidden: true, "aria-label": "Folder of an adapter", onchange: () => take([...folderPicker.files], folderPicker.files[0]?.webkitRelativePath.split("/")[0]) });
  const drop = h("div", { class: "drop", ondragover, ondragleave: () => drop.classList.remove("over"), ondrop },
    h("div", { class: "mark" }, icon("upload")),
    h("h2", null, "Drop the folder that PEFT saved"),
    h("p", { class: "small" }, "or its files: ", h("code", null, NEEDED[0]), ", ", h("code", null, NEEDED[1]), ", and ", h("code", null, "softmux.json"), " if there is one."),
    h("div", { class: "row" }, h("button", { class: "button", type: "button", onclick: () => folderPicker.click() }, "Choose a folder"), h("button", { class: "button", type: "button", onclick: () => picker.click() }, "Choose files")));

  function ondragover(event) {
    event.preventDefault();
    drop.classList.add("over");
  }

  async function ondrop(event) {
    event.preventDefault();
    drop.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = entries.length ? (await Promise.all(entries.map(filesOf))).flat() : [...event.dataTransfer.files];
    take(files, entries.length === 1 && entries[0].isDirectory ? entries[0].name : "");
  }

  function take(files, folder) {
    put(report);
    const known = files.filter((file) => TAKEN.includes(file.name));
    ignored = files.filter((file) => !TAKEN.includes(file.name));
    const twice = known.find((file, i) => known.findIndex((other) => other.name === file.name) !== i);
    if (twice) {
      chosen = [];
      put(report, callout("bad", "More than one adapter", h("p", null, `There are several files named ${twice.name}. A version is one folder: give them one by one.`)));
    } else chosen = known;
    if (!name.value && folder) name.value = folder.toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+/, "").slice(0, 64);
    check();
  }

  function check() {
    const missing = NEEDED.filter((needed) => !chosen.some((file) => file.name === needed));
    const named = NAME.test(name.value);
    name.setAttribute("aria-invalid", String(Boolean(name.value) && !named));
    put(wrongName, name.value && !named ? "Small letters, digits, dots, hyphens and underscores, at most 64; a letter or digit first." : "");
    go.disabled = missing.length > 0 || !named;
    put(listed, (chosen.length || ignored.length) ? h("ul", { class: "files", "aria-label": "Files" },
      chosen.map((file) => h("li", null, h("span", { class: "mono" }, file.name), h("span", { class: "faint num" }, bytes(file.size)))),
      missing.map((needed) => h("li", null, h("span", { class: "mono" }, needed), h("span", { class: "badge warn" }, "Missing"))),
      ignored.slice(0, 8).map((file) => h("li", { class: "faint" }, h("span", { class: "mono" }, file.name), h("span", null, "left out: no part of an adapter"))),
      ignored.length > 8 && h("li", { class: "faint" }, `and ${ignored.length - 8} more that are left out`)) : null);
  }

  async function submit(event) {
    event.preventDefault();
    const task = name.value;
    const bar = h("progress", { max: "1", value: 0, "aria-label": "Upload" });
    const words = h("p", { class: "small muted" }, "Sending…");
    go.disabled = true;
    put(report, h("div", { class: "card pad" }, bar, words));
    try {
      const { status, version } = await tasks.upload(task, active.box.checked, chosen, {
        signal,
        onProgress(part) {
          bar.value = part;
          put(words, part < 1 ? `Sending, ${Math.round(100 * part)} %` : "Checking it: files, numbers, and a run beside the bare model…");
        },
      });
      put(report, admitted(task, version, status === 201));
      toast(`${task} v${version.version} ${version.active ? "answers now" : "is stored"}`);
    } catch (error) {
      if (error.name !== "AbortError") put(report, h("div", { class: "stack" }, errorCallout(error, TITLES[error.code] ?? "Not uploaded"), error.status === 422 && h("p", { class: "small muted" }, "Nothing has changed: what was served before goes on.")));
    }
    check();
  }

  put(root, h("a", { class: "crumb", href: "#/tasks" }, icon("back"), "Tasks"),
    pageHead("Upload", "A new task, or a new version of one. It is checked before it answers anything."),
    h("form", { class: "split", onsubmit: submit },
      h("div", { class: "stack" }, drop, picker, folderPicker, listed, report),
      h("div", { class: "card pad" }, field("Task", name, "What requests call it."), wrongName, active.node, go)));
}

function admitted(task, version, isNew) {
  return h("section", { class: "stack", "aria-label": "Admission report" },
    callout("good", isNew ? `Admitted as version ${version.version}` : `This very content is version ${version.version} already`,
      h("p", null, version.active ? "It answers requests from now on." : "It is stored, and answers once it is activated."),
      h("div", { class: "actions" }, h("a", { class: "button small", href: tasks.address(task) }, "Open the task"), h("a", { class: "button small", href: `#/play?task=${encodeURIComponent(version.active ? task : `${task}@${version.version}`)}` }, icon("play"), "Try it"))),
    version.warnings.length > 0 && callout("warn", "Served, but look at this", h("ul", null, version.warnings.map((warning) => h("li", null, warning)))),
    h("div", { class: "card pad" }, h("h2", null, "What was checked"), h("p", { class: "muted small" }, `${method(version.method)}, ${version.virtual_tokens} learned tokens, ${bytes(version.bytes)}.`),
      h("ul", { class: "files" }, version.checks.map((check) => h("li", null, h("span", null, check), icon("check"))))));
}

/** The files below a dropped entry. */
async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  while (true) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    found.push(...(await Promise.all(some.map(filesOf))).flat());
  }
}
