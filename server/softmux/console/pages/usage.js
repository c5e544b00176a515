// What was used, by day and task.

import * as api from "../js/api.js";
import { barChart } from "../js/charts.js";
import { h, icon, put } from "../js/dom.js";
import { compact, count, seconds } from "../js/format.js";
import { may, session } from "../js/session.js";
import { errorCallout, pageHead, save, segmented, skeletons, table } from "../js/ui.js";

const DAY_MS = 86_400_000;
const SERIES = 6;
const MEASURES = [["completion_tokens", "Generated"], ["prompt_tokens", "Prompts"], ["requests", "Requests"], ["gpu_seconds", "Engine time"]];

export async function usagePage(root, { signal }) {
  const view = await usageView(signal);
  put(root, pageHead("Usage", "Days are UTC. Engine time is an estimate: each step's duration, shared out by tokens."), view);
}

const bare = (row) => (row.task === null ? "Base model" : row.task);
const dayOf = (ms) => new Date(ms).toISOString().slice(0, 10);

/** The view itself, which asks anew when another time or tenant is picked. */
export async function usageView(signal) {
  const state = { days: 30, tenant: session.who.tenant, measure: "completion_tokens" };
  const body = h("div", { class: "stack" }, skeletons());
  const limits = Object.entries(session.who.limits).filter(([, value]) => value !== null);
  let report = null;

  const asked = () => ({ from: dayOf(Date.now() - (state.days - 1) * DAY_MS), to: dayOf(Date.now()), tenant: state.tenant === session.who.tenant ? null : state.tenant });

  async function read() {
    try {
      report = await api.get("v1/usage", asked(), signal);
      draw();
    } catch (error) {
      if (error.name !== "AbortError") put(body, errorCallout(error));
    }
  }

  function draw() {
    const days = Array.from({ length: state.days }, (_, i) => dayOf(Date.now() - (state.days - 1 - i) * DAY_MS));
    const format = state.measure === "gpu_seconds" ? seconds : compact;
    const name = (row) => (state.tenant === "*" ? `${row.tenant}/${bare(row)}` : bare(row));
    const sums = new Map();
    for (const row of report.data) sums.set(name(row), (sums.get(name(row)) ?? 0) + row[state.measure]);
    const order = [...sums].sort((a, b) => b[1] - a[1]).map(([one]) => one);
    const shown = order.length > SERIES ? [...order.slice(0, SERIES - 1), "Others"] : order;
    const at = new Map(days.map((day, i) => [day, i]));
    const series = shown.map((one) => ({ name: one, values: days.map(() => 0) }));
    for (const row of report.data) {
      const which = shown.includes(name(row)) ? shown.indexOf(name(row)) : shown.length - 1;
      if (at.has(row.date)) series[which].values[at.get(row.date)] += row[state.measure];
    }
    const chart = barChart({ title: MEASURES.find(([value]) => value === state.measure)[1], note: "By day and task", format, whole: state.measure !== "gpu_seconds" });
    chart.draw(series, days);
    put(body,
      h("dl", { class: "tiles" }, [["Requests", count(report.total.requests)], ["Prompt tokens", compact(report.total.prompt_tokens)], ["Tokens generated", compact(report.total.completion_tokens)], ["Found in caches", compact(report.total.cached_tokens)], ["Engine time", seconds(report.total.gpu_seconds)]].map(([words, value]) => h("div", { class: "tile" }, h("dt", null, words), h("dd", null, value)))),
      chart.node,
      report.data.length > 0 && h("section", { class: "card" }, h("div", { class: "head" }, h("h2", null, "By task"), h("button", { class: "button small", type: "button", onclick: csv }, icon("download"), "CSV")),
        table("Usage by task", [["Task", "name"], ["Requests", "right num"], ["Prompt tokens", "right num"], ["Generated", "right num"], ["From caches", "right num"], ["Engine time", "right num"]], byTask(report.data, name))));
  }

  async function csv() {
    save(await api.blob("v1/usage", { ...asked(), format: "csv" }), `usage-${asked().from}-${asked().to}.csv`);
  }

  const pick = h("select", { class: "select", onchange: () => { state.tenant = pick.value; read(); } }, h("option", { value: session.who.tenant }, session.who.tenant));
  if (may("admin")) {
    const { data } = await api.get("v1/tenants", {}, signal);
    put(pick, h("option", { value: "*" }, "All tenants"), data.map(({ name }) => h("option", { value: name }, name)));
    if (!data.some(({ name }) => name === session.who.tenant)) pick.append(h("option", { value: session.who.tenant }, session.who.tenant));
    pick.value = session.who.tenant;
  }
  read();
  return h("div", { class: "stack" },
    h("div", { class: "row apart" },
      segmented("Measure", MEASURES, state.measure, (value) => { state.measure = value; if (report) draw(); }),
      h("div", { class: "row" }, may("admin") && h("label", null, h("span", { class: "hidden-text" }, "Tenant"), pick), segmented("Days", [["7", "7 days"], ["30", "30 days"], ["90", "90 days"]], "30", (value) => { state.days = Number(value); read(); }))),
    limits.length > 0 && h("p", { class: "muted small" }, "Your tenant's limits: ", limits.map(([name, value]) => `${count(value)} ${name.replaceAll("_", " ")}`).join(", "), "."),
    body);
}

function byTask(rows, name) {
  const sums = new Map();
  for (const row of rows) {
    const sum = sums.get(name(row)) ?? { requests: 0, prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0, gpu_seconds: 0 };
    for (const key of Object.keys(sum)) sum[key] += row[key];
    sums.set(name(row), sum);
  }
  return [...sums].sort((a, b) => b[1].requests - a[1].requests).map(([task, sum]) => [task, count(sum.requests), count(sum.prompt_tokens), count(sum.completion_tokens), count(sum.cached_tokens), seconds(sum.gpu_seconds)]);
}
