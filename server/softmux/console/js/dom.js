// Elements from values. Text is always a text node: nothing here, or anywhere in the console, parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children) {
    if (Array.isArray(child)) add(element, child);
    else if (child instanceof Node) element.append(child);
    else if (child !== null && child !== undefined && child !== false) element.append(document.createTextNode(String(child)));
  }
}

/** h("a", {href: "#/", onclick: f}, "text", node, [more]): an element. Attributes that are null or false are left out. */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

/** Puts `children` in place of all that `element` holds. */
export function put(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

let numbers = 0;
/** An id that no other element has. */
export function newId(prefix) {
  numbers += 1;
  return `${prefix}-${numbers}`;
}

const PATHS = {
  play: "M5 3.2v9.6L13 8z",
  stop: "M4 4h8v8H4z",
  tasks: "M2.5 4.5 8 2l5.5 2.5L8 7zM2.5 8 8 10.5 13.5 8M2.5 11.5 8 14l5.5-2.5",
  live: "M1.5 8.5h3l2-5.5 3 10 2-4.5h3",
  usage: "M3 13.5V9M8 13.5v-11M13 13.5V6",
  admin: "M8 1.8 13.2 4v3.8c0 3-2.2 5.3-5.2 6.4-3-1.1-5.2-3.4-5.2-6.4V4z",
  search: "M7 12A5 5 0 1 0 7 2a5 5 0 0 0 0 10zM10.8 10.8 14 14",
  copy: "M5.5 5.5V3a1 1 0 0 1 1-1H13a1 1 0 0 1 1 1v6.500a1 1 0 0 1-1 1h-2.500M3 5.500h6.500a1 1 0 0 1 1 1V13a1 1 0 0 1-1 1H3a1 1 0 0 1-1-1V6.500a1 1 0 0 1 1-1z",
  check: "m3 8.500 3.200 3.200L13 4.800",
  upload: "M8 10.500V2.500M4.800 5.500 8 2.300l3.200 3.200M2.500 10.500v2a1 1 0 0 0 1 1h9a1 1 0 0 0 1-1v-2",
  download: "M8 2.500v8M4.800 7.500 8 10.700l3.200-3.200M2.500 10.500v2a1 1 0 0 0 1 1h9a1 1 0 0 0 1-1v-2",
  trash: "M2.500 4.500h11M6 4.500V2.500h4v2M4 4.500l.600 9h6.800l.600-9M6.700 7v4M9.300 7v4",
  warn: "M8 2 14.500 13.500h-13zM8 6.500v3M8 11.500v.010",
  bad: "M8 14.500a6.500 6.500 0 1 0 0-13 6.500 6.500 0 0 0 0 13zM8 4.800v3.700M8 11v.010",
  info: "M8 14.500a6.500 6.500 0 1 0 0-13 6.500 6.500 0 0 0 0 13zM8 7.500V11M8 5v.010",
  back: "M9.500 3.500 5 8l4.500 4.500",
  next: "M6.500 3.500 11 8l-4.500 4.500",
  plus: "M8 3v10M3 8h10",
  close: "m4 4 8 8M12 4l-8 8",
  sun: "M8 10.800a2.800 2.800 0 1 0 0-5.600 2.800 2.800 0 0 0 0 5.600zM8 1.500v1.200M8 13.300v1.200M1.500 8h1.200M13.300 8h1.200M3.400 3.400l.900.900M11.700 11.700l.900.900M3.400 12.600l.900-.900M11.700 4.300l.900-.900",
  moon: "M13.500 9.500A6 6 0 1 1 6.500 2.500a4.800 4.800 0 0 0 7 7z",
  auto: "M2.500 3h11v7.500h-11zM6 13.500h4",
  leave: "M6 2.500H3.500a1 1 0 0 0-1 1v9a1 1 0 0 0 1 1H6M10.500 11 13.500 8l-3-3M13.500 8H6",
  compare: "M2.500 3h4v10h-4zM9.500 3h4v10h-4z",
  key: "M5.500 13a3 3 0 1 0 0-6 3 3 0 0 0 0 6zM7.700 7.800 13 2.500M10.500 5l2 2",
};

/** An icon, which says nothing to a screen reader: what it stands for is always written beside it, or its button's label. */
export function icon(name) {
  return s("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true", focusable: "false" }, s("path", { d: PATHS[name] }));
}
