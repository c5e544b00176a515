// For administrators: tenants with their limits, keys, and who changed what.

import * as api from "../js/api.js";
import { h, icon, put } from "../js/dom.js";
import { ago, count, date } from "../js/format.js";
import { may, session } from "../js/session.js";
import { ask, badge, checkbox, copyButton, digestView, empty, field, pageHead, table, toast } from "../js/ui.js";

const LIMITS = [["requests_per_minute", "Requests a minute"], ["tokens_per_minute", "Tokens a minute"], ["tokens_in_flight", "Tokens in flight"], ["stored_bytes", "Stored bytes"], ["adapters", "Tasks"]];
const ROLES = [["user", "user: generates and reads"], ["publisher", "publisher: uploads, too"], ["admin", "admin: everything"]];
const PAGES = { tenants, keys, audit };

export async function adminPage(root, { parts: [which], signal }) {
  if (!may("admin")) {
    put(root, pageHead("Admin"), h("section", { class: "card" }, empty("admin", "For administrators", "This takes a key of the role admin.")));
    return;
  }
  const tabs = h("nav", { class: "tabs", "aria-label": "Admin" }, Object.keys(PAGES).map((name) => h("a", { href: `#/admin/${name}`, "aria-current": name === which ? "page" : null }, { tenants: "Tenants", keys: "Keys", audit: "Audit log" }[name])));
  const content = await PAGES[which](signal, () => adminPage(root, { parts: [which], signal }));
  put(root, pageHead("Admin", "All tenants of this server.", ...content.actions), h("div", null, tabs), content.body);
}

async function tenants(signal, again) {
  const { data } = await api.get("v1/tenants", {}, signal);
  return {
    actions: [h("button", { class: "button primary", type: "button", onclick: () => edit(null, again) }, icon("plus"), "New tenant")],
    body: h("section", { class: "card", "aria-label": "Tenants" }, data.length
      ? table("Tenants", [["Name", "name"], ["Weight", "right num"], ...LIMITS.map(([, label]) => [label, "right num"]), ["", "right"]], data.map((tenant) => [
        tenant.name, String(tenant.weight), ...LIMITS.map(([name]) => (tenant.limits[name] === null ? h("span", { class: "faint" }, "–") : count(tenant.limits[name]))),
        h("span", { class: "row" }, h("button", { class: "button small", type: "button", "aria-label": `Change ${tenant.name}`, onclick: () => edit(tenant, again) }, "Change"),
          h("button", { class: "button small danger", type: "button", "aria-label": `Delete ${tenant.name}`, onclick: () => removeTenant(tenant, again) }, "Delete")),
      ]))
      : empty("admin", "No tenants yet", "A tenant has tasks, keys, limits and caches of its own. The first is made with the first key.")),
  };
}

async function edit(tenant, again) {
  const name = h("input", { class: "input mono", autocomplete: "off", spellcheck: "false", required: true, maxlength: "64" });
  const weight = h("input", { class: "input num", type: "number", min: "0.001", max: "1000", step: "any", required: true, value: String(tenant?.weight ?? 1) });
  const fields = LIMITS.map(([key, label]) => [key, label, h("input", { class: "input num", type: "number", min: "0", step: "1", placeholder: "none", value: tenant?.limits[key] ?? "" })]);
  const done = await ask({
    title: tenant ? `Change ${tenant.name}` : "New tenant", words: ["Without a limit there is none. Two tenants that wait are served in proportion to their weights."],
    fields: [!tenant && field("Name", name), field("Weight", weight), h("div", { class: "grid-2" }, fields.map(([, label, input]) => field(label, input)))],
    action: tenant ? "Save" : "Create",
    act: () => {
      const limits = Object.fromEntries(fields.map(([key, , input]) => [key, input.value === "" ? null : Number(input.value)]));
      const json = { weight: Number(weight.value), limits };
      return tenant ? api.call("PATCH", api.path`v1/tenants/${tenant.name}`, { json }) : api.call("POST", "v1/tenants", { json: { name: name.value.trim(), ...json } });
    },
  });
  if (done === null) return;
  toast(tenant ? `${done.name} is changed` : `${done.name} is there`);
  await again();
}

async function removeTenant(tenant, again) {
  const force = checkbox("Revoke its keys and delete its tasks first");
  const done = await ask({
    title: `Delete ${tenant.name}?`, words: ["Its name is not given again. Usage and the audit log keep what it did."], fields: [force.node],
    action: "Delete", danger: true, typed: tenant.name,
    act: async () => { await api.call("DELETE", api.path`v1/tenants/${tenant.name}`, { query: { force: force.box.checked ? "true" : null } }); return true; },
  });
  if (done === null) return;
  toast(`${tenant.name} is deleted`);
  await again();
}

async function keys(signal, again) {
  const { data } = await api.get("v1/keys", {}, signal);
  data.sort((a, b) => (a.revoked_at === null ? 0 : 1) - (b.revoked_at === null ? 0 : 1) || b.created_at - a.created_at);
  return {
    actions: [h("button", { class: "button primary", type: "button", onclick: () => makeKey(signal, again) }, icon("plus"), "New key")],
    body: h("section", { class: "card", "aria-label": "Keys" }, data.length
      ? table("Keys", [["Key", "name"], ["Tenant", ""], ["Role", ""], ["Begins with", ""], ["Made", "right"], ["", "right"]], data.map((key) => [
        h("span", { class: "row" }, h("code", null, key.id), key.id === session.who.key_id && badge("This one", "accent")), key.tenant, badge(key.role), h("code", { class: "muted" }, `${key.prefix}…`),
        h("span", { class: "muted", title: date(key.created_at) }, ago(key.created_at)),
        key.revoked_at === null ? h("button", { class: "button small danger", type: "button", "aria-label": `Revoke ${key.id}`, onclick: () => revoke(key, again) }, "Revoke") : badge("Revoked", "bad"),
      ]))
      : empty("key", "No keys yet", "Until there is one, this server answers on its own machine alone, to everyone there. The first key should be an administrator's.")),
  };
}

async function makeKey(signal, again) {
  const { data } = await api.get("v1/tenants", {}, signal);
  const names = [...new Set([...data.map(({ name }) => name), session.who.tenant])];
  const tenant = h("select", { class: "select" }, names.map((name) => h("option", { value: name }, name)));
  tenant.value = session.who.tenant;
  const role = h("select", { class: "select" }, ROLES.map(([value, words]) => h("option", { value }, words)));
  role.value = session.keys ? "user" : "admin";
  const made = await ask({
    title: "New key", fields: [field("Tenant", tenant), field("Role", role)], action: "Create",
    act: () => api.call("POST", "v1/keys", { json: { tenant: tenant.value, role: role.value } }),
  });
  if (made === null) return;
  await ask({
    title: "Copy this key now", words: [`It is ${made.tenant}'s, of the role ${made.role}, and can't be shown again: the server keeps only its hash.`],
    fields: [h("div", { class: "secret" }, h("code", null, made.key), copyButton(made.key, "Copy the key"))], action: "I have it",
  });
  if (session.keys) await again();
  else location.reload(); // the first key: from now on this page needs one
}

async function revoke(key, again) {
  const own = key.id === session.who.key_id;
  const done = await ask({ title: `Revoke ${key.id}?`, words: ["Requests with it are refused within seconds, by every server.", ...(own ? ["It is the one that you are signed in with."] : [])], action: "Revoke", danger: true, act: async () => { await api.call("DELETE", api.path`v1/keys/${key.id}`); return true; } });
  if (done === null) return;
  toast(`${key.id} is revoked`);
  await again();
}

const detail = (entry) => Object.entries(entry.detail).map(([name, value]) => `${name.replaceAll("_", " ")}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");

async function audit(signal) {
  let tenant = "";
  let entries = [];
  let after = null;
  const list = h("section", { class: "card", "aria-label": "Audit log" });
  const filter = h("input", { class: "input", type: "search", "aria-label": "Of the tenant", placeholder: "Tenant", autocomplete: "off", spellcheck: "false", onchange: () => { tenant = filter.value.trim(); entries = []; after = null; more(); } });

  async function more() {
    const page = await api.get("v1/audit", { order: "newest", limit: 100, after, tenant }, signal);
    entries = [...entries, ...page.data];
    after = page.next_after;
    put(list, entries.length ? [
      table("Audit log", [["What", "name"], ["Tenant", ""], ["Task", ""], ["Digest", ""], ["By", ""], ["When", "right"]], entries.map((entry) => [
        [entry.action, Object.keys(entry.detail).length > 0 && h("span", { class: "note", title: detail(entry) }, detail(entry))],
        entry.tenant, entry.task && `${entry.task}${entry.version === null ? "" : ` v${entry.version}`}`, entry.digest && digestView(entry.digest), h("code", null, entry.actor), h("span", { class: "muted", title: date(entry.at) }, ago(entry.at)),
      ])),
      after && h("div", { class: "card pad" }, h("button", { class: "button", type: "button", onclick: more }, "Show older ones")),
    ] : empty("admin", "Nothing yet", tenant ? "There is no change to this tenant's things." : "Every change to a task, a share, a key or a tenant comes here."));
  }

  await more();
  return { actions: [], body: h("div", { class: "stack" }, h("div", { class: "search" }, icon("search"), filter), list) };
}
