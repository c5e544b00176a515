// The console: signs in, draws the frame, and shows the page that the address names.

import * as api from "./api.js";
import { h, icon, put } from "./dom.js";
import { count } from "./format.js";
import { may, needsKey, session, signIn, signOut } from "./session.js";
import { applyTheme, themeButton } from "./theme.js";
import { callout, errorCallout, skeletons } from "./ui.js";
import { adminPage } from "../pages/admin.js";
import { livePage } from "../pages/live.js";
import { playPage } from "../pages/play.js";
import { signInPage } from "../pages/sign-in.js";
import { sharedTaskPage, taskPage } from "../pages/task.js";
import { tasksPage } from "../pages/tasks.js";
import { uploadPage } from "../pages/upload.js";
import { usagePage } from "../pages/usage.js";

const READY_MS = 5000;

/** Each page is a function of its root element, what the address holds, and a signal that fires when it is left. */
const ROUTES = [
  [/^tasks$/, tasksPage, "Tasks"],
  [/^tasks\/([^/]+)$/, taskPage, "Tasks"],
  [/^shared\/([^/]+)\/([^/]+)$/, sharedTaskPage, "Tasks"],
  [/^upload$/, uploadPage, "Tasks"],
  [/^play$/, playPage, "Playground"],
  [/^live$/, livePage, "Live"],
  [/^usage$/, usagePage, "Usage"],
  [/^admin\/(tenants|keys|audit)$/, adminPage, "Admin"],
];

const app = document.getElementById("app");
const main = h("main", { class: "main", id: "main", tabindex: "-1" });
let links = [];
let leave = new AbortController();
let first = true;

function navigation() {
  const items = [["Tasks", "#/tasks", "tasks"], ["Playground", "#/play", "play"], ["Live", "#/live", "live"], ["Usage", "#/usage", "usage"]];
  if (may("admin")) items.push(["Admin", "#/admin/tenants", "admin"]);
  links = items.map(([name, href, mark]) => h("a", { href, "data-name": name }, icon(mark), name));
  return h("nav", { class: "nav", "aria-label": "Console" }, links);
}

function account() {
  return h("div", { class: "who" },
    h("div", { class: "names" }, h("span", { class: "small" }, session.who.tenant), h("span", { class: "faint small" }, session.keys ? session.who.role : "no keys yet")),
    themeButton(),
    session.keys && h("button", { class: "button quiet square small", type: "button", "aria-label": "Sign out", title: "Sign out", onclick: () => { signOut(); showSignIn(); } }, icon("leave")));
}

const brand = () => h("div", { class: "brand" }, h("img", { src: "console/icon.svg", alt: "" }), "softmux");

function drawFrame() {
  const { model } = session;
  const state = h("span", { class: "state", role: "status" }, h("i", { class: "dot" }), "…");
  put(app,
    h("a", { class: "skip", href: "#main", onclick: (event) => { event.preventDefault(); main.focus(); } }, "Skip to content"),
    h("div", { class: "frame" },
      h("header", { class: "top" }, brand(), account()),
      h("div", { class: "side" }, brand(), navigation(),
        h("div", { class: "foot" },
          h("div", { class: "base" }, h("strong", null, model.id.split("/").pop()),
            h("span", { class: "faint" }, `${model.dtype}${model.quantization ? `, ${model.quantization}` : ""} · ${count(model.context_length)} tokens`), state),
          account())),
      main));
  watchReady(state);
}

async function watchReady(state) {
  let shown = null;
  while (state.isConnected) {
    let [mark, words] = ["bad", "Not ready"];
    try {
      const { up, replicas } = await api.get("health/ready");
      [mark, words] = up < replicas ? ["warn", `Serving by ${up} of ${replicas}`] : ["good", "Serving"];
    } catch {
      // as it stands
    }
    if (words !== shown) put(state, h("i", { class: `dot ${mark}` }), words);
    shown = words;
    await new Promise((resolve) => setTimeout(resolve, READY_MS));
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

async function show() {
  if (session.who === null) return;
  leave.abort();
  leave = new AbortController();
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  const [where, query] = location.hash.replace(/^#\/?/, "").split("?");
  const route = ROUTES.find(([pattern]) => pattern.test(where));
  if (!route) {
    location.replace("#/tasks");
    return;
  }
  const [pattern, page, name] = route;
  for (const link of links) {
    if (link.dataset.name === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const root = h("div", { class: "page" }, skeletons());
  put(main, root);
  const { signal } = leave;
  try {
    await page(root, { parts: where.match(pattern).slice(1).map(decoded), query: new URLSearchParams(query), signal });
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    if (!(error instanceof api.ApiError)) throw error;
    put(root, h("h1", { tabindex: "-1" }, name), errorCallout(error, "This page could not be read"));
  }
  if (signal.aborted) return;
  const heading = root.querySelector("h1");
  document.title = `${heading?.textContent ?? name} · softmux`;
  if (!first) heading?.focus({ preventScroll: true });
  first = false;
  scrollTo(0, 0);
}

function enter() {
  drawFrame();
  if (!location.hash) location.replace("#/tasks");
  else show();
}

function showSignIn(note = null) {
  leave.abort();
  document.title = "Sign in · softmux";
  signInPage(app, { note, onSignIn: async (key) => { await signIn(key); first = false; enter(); } });
}

async function start() {
  applyTheme();
  api.whenRefused(() => {
    if (session.who === null) return;
    signOut();
    showSignIn("Your key is not valid any more: it was revoked, or the server's keys have changed.");
  });
  addEventListener("hashchange", show);
  try {
    if (await needsKey()) return showSignIn();
    await signIn(null);
    enter();
  } catch (error) {
    if (error.status === 401) return showSignIn(); // the first key was made just now
    put(app, h("div", { class: "sign-in" }, h("div", { class: "stack" }, callout("bad", "The server does not answer yet", h("p", null, error.message)), h("button", { class: "button", type: "button", onclick: start }, "Try again"))));
  }
}

start();
