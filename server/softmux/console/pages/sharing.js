// Who else may use a task.

import { h, put } from "../js/dom.js";
import * as tasks from "../js/tasks.js";
import { ask, badge, checkbox, field, toast } from "../js/ui.js";

/** The section about it; it draws itself anew when that is changed. */
export async function sharing(task, manages, signal) {
  const section = h("section", { class: "card pad" });
  let share = await tasks.shares(task, signal);

  function draw() {
    const nobody = !share.everyone && !share.tenants.length;
    put(section, h("h2", null, "Shared with"),
      nobody ? h("p", { class: "muted small" }, "Nobody: this task is your tenant's own.") : h("div", { class: "row" }, share.everyone && badge("Everyone", "accent"), share.tenants.map((tenant) => badge(tenant))),
      !nobody && h("p", { class: "muted small" }, share.files ? "They may fetch its files, too." : "They use it, without its files."),
      manages && h("div", { class: "actions" }, h("button", { class: "button small", type: "button", onclick: change }, nobody ? "Share" : "Change"), !nobody && h("button", { class: "button small danger", type: "button", onclick: stop }, "Stop sharing")));
  }

  async function change() {
    const names = h("input", { class: "input", autocomplete: "off", spellcheck: "false", value: share.tenants.join(", ") });
    const everyone = checkbox("All tenants", share.everyone);
    const files = checkbox("They may fetch the files", share.files);
    const done = await ask({
      title: `Share ${task}`, words: ["They can call it, and read what it is. They change nothing."],
      fields: [field("Tenants", names, "By name, separated by commas."), everyone.node, files.node], action: "Share",
      act: () => tasks.share(task, { tenants: names.value.split(/[\s,]+/).filter(Boolean), everyone: everyone.box.checked, files: files.box.checked }),
    });
    if (done === null) return;
    share = done;
    toast("Shared");
    draw();
  }

  async function stop() {
    const done = await ask({ title: "Stop sharing?", words: ["The others' next request for it is refused."], action: "Stop sharing", danger: true, act: async () => { await tasks.unshare(task); return true; } });
    if (done === null) return;
    share = { tenants: [], everyone: false, files: false };
    draw();
  }

  draw();
  return section;
}
