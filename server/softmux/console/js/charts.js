// Charts in SVG, small and without a library. Colours are classes; nothing sets a style.

import { h, put, s } from "./dom.js";

const H = 180;
const LEFT = 44;
const BOTTOM = 20;
const TOP = 8;
const RIGHT = 4;

/** Calls `draw` with the width that `plot` has, now and whenever it changes. */
function fitted(plot, draw) {
  new ResizeObserver(() => plot.clientWidth && draw()).observe(plot);
}

/** The width to draw for: the plot's own, so that text is never stretched. */
function widthOf(plot) {
  const width = Math.max(200, plot.clientWidth);
  plot.setAttribute("viewBox", `0 0 ${width} ${H}`);
  return width;
}

/** A round number not below `value`, and the step of up to five lines to it: no less than `least`, below which what is
 * written at the lines would be the same. */
export function scale(value, least = 0) {
  if (least && !(value > 4 * least)) return { top: 4 * least, step: least };
  if (!(value > 0)) return { top: 1, step: 0.5 };
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [0.2, 0.5, 1, 2].map((factor) => factor * power).find((one) => one >= least && Math.ceil(value / one - 1e-9) <= 5);
  return { top: step * Math.ceil(value / step - 1e-9), step };
}

/** A chart of `title` and `note`. `draw(series, times)` shows it: each series is `{name, values, words}`, with null where
 * nothing was seen; `format` writes a value, `least` is the least difference that it shows. `stacked` fills each on top of the one
 * before. */
export function lineChart({ title, note, format, stacked = false, most = null, least = 0 }) {
  const plot = s("svg", { class: "plot", role: "img", onpointermove, onpointerleave: () => legend(last) });
  const keys = h("ul", { class: "keys" });
  const node = h("figure", { class: "card chart" }, h("figcaption", { class: "title" }, h("h2", null, title), h("p", null, note)), plot, keys);
  let shown = { series: [], times: [] };
  let W = 200;
  let last = null;
  const cursor = s("line", { class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });

  const x = (i) => LEFT + ((W - LEFT - RIGHT) * i) / Math.max(1, shown.times.length - 1);

  function legend(at) {
    cursor.setAttribute("visibility", at === last || at === null ? "hidden" : "visible");
    if (at !== null) {
      cursor.setAttribute("x1", x(at));
      cursor.setAttribute("x2", x(at));
    }
    put(keys, shown.series.map(({ name, values }, i) => h("li", null, h("i", { class: `f${i + 1}` }), name, h("b", null, at === null || values[at] === null ? "–" : format(values[at])))),
      at !== last && at !== null && h("li", { class: "faint" }, shown.times[at]));
  }

  function onpointermove(event) {
    const box = plot.getBoundingClientRect();
    const part = (((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT);
    if (shown.times.length) legend(Math.max(0, Math.min(shown.times.length - 1, Math.round(part * (shown.times.length - 1)))));
  }

  function draw(series, times) {
    shown = { series, times };
    W = widthOf(plot);
    last = times.length ? times.length - 1 : null;
    const tops = stacked ? stack(series, times.length) : series.map(({ values }) => values);
    const highest = Math.max(0, ...tops.flat().filter((value) => value !== null));
    const { top, step } = most ? { top: most, step: most / 4 } : scale(highest, least);
    const y = (value) => TOP + (H - TOP - BOTTOM) * (1 - value / top);
    const lines = [];
    for (let value = 0; value <= top * 1.001; value += step) {
      lines.push(s("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(value), y2: y(value) }), s("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, format(value)));
    }
    if (times.length) lines.push(s("text", { x: LEFT, y: H - 3 }, times[0]), s("text", { x: W - RIGHT, y: H - 3, "text-anchor": "end" }, times.at(-1)));
    const shapes = tops.map((values, i) => {
      const below = stacked && i ? tops[i - 1] : null;
      return runs(values).map(([from, to]) => {
        const line = points(values, from, to, y);
        const floor = below ? points(below, from, to, y).reverse() : [[x(to), y(0)], [x(from), y(0)]];
        const area = s("path", { class: `f${i + 1} ${stacked ? "stacked" : "area"}`, d: `M${[...line, ...floor].map((point) => point.join(" ")).join("L")}Z` });
        return [area, stacked ? null : s("path", { class: `line s${i + 1}`, d: `M${line.map((point) => point.join(" ")).join("L")}` })];
      });
    });
    const nothing = highest === 0 && s("text", { class: "nothing", x: (LEFT + W) / 2, y: H / 2 - 10 }, times.length ? "Nothing in this time" : "Reading…");
    put(plot, lines, shapes.flat(3), nothing, cursor);
    plot.setAttribute("aria-label", `${title}: ${series.map(({ name, values }) => `${name} ${last === null || values[last] === null ? "nothing" : format(values[last])} now, ${format(Math.max(0, ...values))} at most`).join(", ")}`);
    legend(last);
  }

  function points(values, from, to, y) {
    const found = [];
    for (let i = from; i <= to; i += 1) found.push([x(i).toFixed(1), y(values[i] ?? 0).toFixed(1)]);
    return found;
  }

  fitted(plot, () => draw(shown.series, shown.times));
  return { node, draw };
}

/** Where values are there without a gap: [first, last] of each stretch. */
function runs(values) {
  const found = [];
  values.forEach((value, i) => {
    if (value === null) return;
    if (found.length && found.at(-1)[1] === i - 1) found.at(-1)[1] = i;
    else found.push([i, i]);
  });
  return found;
}

function stack(series, length) {
  const sums = Array(length).fill(0);
  return series.map(({ values }) => values.map((value, i) => { sums[i] += value ?? 0; return sums[i]; }));
}

/** Bars by day, stacked by series: for usage. Each series is `{name, values}`. */
export function barChart({ title, note, format, whole }) {
  const plot = s("svg", { class: "plot", role: "img" });
  const keys = h("ul", { class: "keys" });
  const node = h("figure", { class: "card chart" }, h("figcaption", { class: "title" }, h("h2", null, title), h("p", null, note)), plot, keys);
  let shown = { series: [], days: [] };
  function draw(series, days) {
    shown = { series, days };
    const W = widthOf(plot);
    const tops = stack(series, days.length);
    const highest = Math.max(0, ...(tops.at(-1) ?? []));
    const { top, step } = scale(highest, whole ? 1 : 0);
    const y = (value) => TOP + (H - TOP - BOTTOM) * (1 - value / top);
    const width = (W - LEFT) / Math.max(1, days.length);
    const lines = [];
    for (let value = 0; value <= top * 1.001; value += step) lines.push(s("line", { class: "grid", x1: LEFT, x2: W, y1: y(value), y2: y(value) }), s("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, format(value)));
    const bars = tops.map((values, i) => values.map((value, day) => (series[i].values[day] ? s("rect", { class: `f${i + 1}`, x: LEFT + day * width + width * 0.15, width: width * 0.7, y: y(value), height: Math.max(1, y(value - series[i].values[day]) - y(value)), rx: 1.5 }, s("title", null, `${days[day]}, ${series[i].name}: ${format(series[i].values[day])}`)) : null)));
    const each = Math.ceil((days.length * 64) / W);
    const named = days.map((day, i) => (i % each ? null : s("text", { x: LEFT + (i + 0.5) * width, y: H - 3, "text-anchor": "middle" }, day.slice(5))));
    put(plot, lines, bars, named, highest === 0 && s("text", { class: "nothing", x: (LEFT + W) / 2, y: H / 2 - 10 }, "Nothing in this time"));
    plot.setAttribute("aria-label", `${title}: ${series.map(({ name, values }) => `${name} ${format(values.reduce((a, b) => a + b, 0))}`).join(", ") || "nothing"}`);
    put(keys, series.map(({ name }, i) => h("li", null, h("i", { class: `f${i + 1}` }), name)));
  }
  fitted(plot, () => draw(shown.series, shown.days));
  return { node, draw };
}
