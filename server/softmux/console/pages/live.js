// What the server does now, from its own metrics.

import * as api from "../js/api.js";
import { lineChart } from "../js/charts.js";
import { h, put } from "../js/dom.js";
import { compact, method, percent, rate, seconds } from "../js/format.js";
import { growth, growthBy, parse, quantile, total } from "../js/prometheus.js";
import { session, whenSignedOut } from "../js/session.js";
import { callout, errorCallout, pageHead } from "../js/ui.js";
import { usageView } from "./usage.js";

const EVERY_MS = 2000;
const KEPT = 150;
const GAP_MS = 20_000; // longer without a reading, and the lines begin anew
const WINDOW = 5; // readings that quantiles and ratios are taken over
const SERIES = 6;
const readings = []; // for as long as one is signed in
whenSignedOut(() => { readings.length = 0; });

const at = (name) => `softmux_${name}`;
const time = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export async function livePage(root, { signal }) {
  if (!session.who.metrics) return ownUsage(root, signal);
  const charts = {
    tokens: lineChart({ title: "Throughput", note: "Tokens a second, computed by the engine", format: rate, least: 0.1 }),
    rows: lineChart({ title: "Requests", note: "Sequences in the batch, and waiting for room", format: compact, least: 1 }),
    first: lineChart({ title: "Time to first token", note: "From a request's receipt, over the last ten seconds", format: seconds }),
    between: lineChart({ title: "Between tokens", note: "As they reach the client's side, over the last ten seconds", format: seconds }),
    mix: lineChart({ title: "Batch mix", note: "Rows of a step by the method of their task", format: rate, least: 0.1, stacked: true }),
    cache: lineChart({ title: "Caches", note: "Input tokens whose keys and values were there already, and room in use", format: (value) => percent(value), most: 1 }),
  };
  const tiles = h("dl", { class: "tiles" });
  const wrong = h("div");
  put(root, pageHead("Live", "This server's last five minutes, read every two seconds."), wrong, tiles, h("div", { class: "charts" }, Object.values(charts).map(({ node }) => node)));
  drawAll(charts, tiles);
  poll(signal, (error) => {
    put(wrong, error && errorCallout(error, "The metrics can't be read now"));
    if (!error) drawAll(charts, tiles);
  });
}

async function poll(signal, told) {
  while (!signal.aborted) {
    const began = performance.now();
    try {
      const reading = { at: Date.now(), values: parse(await api.text("metrics", {}, signal)) };
      if (readings.length && reading.at - readings.at(-1).at > GAP_MS) readings.length = 0; // the page was left
      readings.push(reading);
      if (readings.length > KEPT) readings.shift();
      told(null);
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      told(error);
    }
    await new Promise((resolve) => {
      const waiting = setTimeout(resolve, Math.max(200, EVERY_MS - (performance.now() - began)));
      signal.addEventListener("abort", () => { clearTimeout(waiting); resolve(); }, { once: true });
    });
  }
}

/** By reading but the first: what `take` makes of it, the one before it, and the one a window ago. */
function over(take) {
  return readings.slice(1).map((now, i) => take(now, readings[i], readings[Math.max(0, i + 1 - WINDOW)]));
}

const perSecond = (name, wanted) => over((now, before) => {
  const grown = growth(before.values, now.values, at(name), wanted);
  return grown === null ? null : grown / ((now.at - before.at) / 1000);
});
const gauge = (name) => over((now) => total(now.values, at(name)));
const quantiles = (name, q) => over((now, _, past) => quantile(past.values, now.values, at(name), q));
const ratio = (part, whole) => over((now, _, past) => {
  const [a, b] = [growth(past.values, now.values, at(part)), growth(past.values, now.values, at(whole))];
  return b ? a / b : null;
});

function mix() {
  const grown = readings.length ? growthBy(readings[0].values, readings.at(-1).values, at("engine_rows_total"), "method") : new Map();
  const methods = [...grown].filter(([, rows]) => rows > 0).sort((a, b) => b[1] - a[1]).map(([name]) => name).slice(0, SERIES);
  return methods.map((name) => ({
    name: name === "base" ? "Base model" : method(name),
    values: over((now, before) => {
      const steps = growth(before.values, now.values, at("engine_steps_total"));
      return steps ? (growthBy(before.values, now.values, at("engine_rows_total"), "method").get(name) ?? 0) / steps : 0;
    }),
  }));
}

function drawAll(charts, tiles) {
  const times = readings.slice(1).map((reading) => time.format(reading.at));
  const generated = perSecond("engine_generated_tokens_total");
  const computed = perSecond("engine_step_tokens_total");
  charts.tokens.draw([{ name: "Generated", values: generated }, { name: "All computed", values: computed }], times);
  charts.rows.draw([{ name: "Running", values: gauge("num_requests_running") }, { name: "Waiting", values: gauge("num_requests_waiting") }], times);
  for (const [chart, name] of [[charts.first, "time_to_first_token_seconds"], [charts.between, "inter_token_latency_seconds"]]) {
    chart.draw([{ name: "Median", values: quantiles(name, 0.5) }, { name: "95 of 100", values: quantiles(name, 0.95) }], times);
  }
  charts.mix.draw(mix(), times);
  charts.cache.draw([{ name: "Found in the cache", values: ratio("prefix_cache_hits_total", "prefix_cache_queries_total") }, { name: "KV room in use", values: gauge("kv_cache_usage_perc") }], times);

  const now = readings.at(-1)?.values ?? new Map();
  const failed = perSecond("requests_total", ({ outcome }) => outcome !== "ok").at(-1) ?? null;
  const steps = over((later, _, past) => growth(past.values, later.values, at("engine_steps_total"))).at(-1);
  const adapters = over((later, _, past) => growth(past.values, later.values, at("batch_adapters_sum"))).at(-1);
  put(tiles, [
    ["Requests", rate(perSecond("requests_total").at(-1) ?? null), "/ s"],
    ["Not answered well", rate(failed), "/ s"],
    ["Tokens generated", rate(generated.at(-1) ?? null), "/ s"],
    ["Tasks in a step", steps ? rate(adapters / steps) : "–", ""],
    ["Tasks in host memory", compact(total(now, at("adapters_in_host_memory")) ?? 0), ""],
    ["Engines up", readings.length ? String(total(now, at("worker_up")) ?? "–") : "–", `of ${total(now, at("workers")) ?? 1}`],
  ].map(([name, value, unit]) => h("div", { class: "tile" }, h("dt", null, name), h("dd", null, value, " ", h("small", null, unit)))));
}

async function ownUsage(root, signal) {
  const view = await usageView(signal);
  put(root, pageHead("Live", "What your tenant uses."),
    callout("info", "The server's own metrics are its administrators'", h("p", null, "They tell of all tenants at once, so your key does not read them. Below is what your tenant asked for, as it is counted.")), view);
}
