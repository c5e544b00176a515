// Tasks as the API tells of them, their own tenant's and those that others share.

import * as api from "./api.js";

const OWN = "v1/adapters";
const SHARED = "v1/shared";

/** `owner/task` is another tenant's. */
const root = (task) => (task.includes("/") ? SHARED : OWN);

export const page = (shared, query, signal) => api.get(shared ? SHARED : OWN, query, signal);
export const versions = async (task, signal) => (await api.get(api.path`${root(task)}/${task}/versions`, {}, signal)).data;
export const file = (task, number, name) => api.blob(api.path`${root(task)}/${task}/versions/${number}/files/${name}`);
export const activate = (task, version) => api.call("POST", api.path`${OWN}/${task}/activate`, { json: { version } });
export const remove = (task) => api.call("DELETE", api.path`${OWN}/${task}`);
export const shares = (task, signal) => api.get(api.path`${OWN}/${task}/shares`, {}, signal);
export const share = (task, json) => api.call("PUT", api.path`${OWN}/${task}/shares`, { json });
export const unshare = (task) => api.call("DELETE", api.path`${OWN}/${task}/shares`);
export const upload = (task, activate, files, options) => api.upload(api.path`${OWN}/${task}`, { activate: activate ? null : "false" }, files, options);

export const address = (task) => `#/${task.includes("/") ? "shared" : "tasks"}/${task.split("/").map(encodeURIComponent).join("/")}`;

/** Whether its labels are words that it says: it has no head, and one text is all it takes. */
export const saysLabels = (version) => !version.head && labelNames(version).length > 0 && (version.template === null || slotsOf(version.template).length === 1);

/** The labels' names, whatever form they were given in. */
export function labelNames(version) {
  const { labels } = version;
  return labels === null ? [] : Array.isArray(labels) ? labels : Object.keys(labels);
}

/** A template's pieces: `{text}`, `{learned: count}` or `{slot: name}`. The server has checked that it is one. */
export function templatePieces(template) {
  const found = [];
  for (const [whole, learned, slot] of template.matchAll(/\{\{|\}\}|\{p:(\d+)\}|\{([A-Za-z_]\w*)\}|[^{}]+/g)) {
    if (learned !== undefined) found.push({ learned: Number(learned) });
    else if (slot !== undefined) found.push({ slot });
    else found.push({ text: whole === "{{" ? "{" : whole === "}}" ? "}" : whole });
  }
  return found;
}

export const slotsOf = (template) => [...new Set(templatePieces(template).flatMap((piece) => piece.slot ?? []))];
