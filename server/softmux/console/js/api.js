// Calls to the server. Each carries the key, which is kept in this module's memory and nowhere else.

let key = null;
let onRefused = () => {};

export function useKey(value) {
  key = value;
}

/** What to do when the server no longer takes the key. */
export function whenRefused(callback) {
  onRefused = callback;
}

/** An error that the server told of, or that it could not be reached. `message` is for people. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.param = error.param ?? null;
  }
}

const AWAY = { message: "The server can't be reached. Is it running, and are you still on its network?", code: "unreachable" };
const OTHER = { message: "The answer was none of softmux: is there a proxy in between?", code: "not_softmux" };

/** A route's address, relative to the page: the console works below a proxy's path, too. */
export function address(path, query = {}) {
  const url = new URL(path, document.baseURI.split("#")[0]);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

/** `v1/adapters/…` with each part of the path encoded; `owner/task` stays two parts. */
export function path(strings, ...values) {
  return strings.reduce((text, part, i) => text + part + (i < values.length ? String(values[i]).split("/").map(encodeURIComponent).join("/") : ""), "");
}

function headers(json) {
  const found = {};
  if (key !== null) found.authorization = `Bearer ${key}`;
  if (json) found["content-type"] = "application/json";
  return found;
}

function refusal(status, text) {
  let error = OTHER;
  try {
    error = JSON.parse(text).error ?? OTHER;
  } catch {
    // no JSON: a proxy's page
  }
  const found = new ApiError(status, error);
  if (status === 401) onRefused(found);
  return found;
}

async function send(method, where, { query, json, signal, accept } = {}) {
  let answer;
  try {
    answer = await fetch(address(where, query), {
      method, signal, cache: "no-store", credentials: "omit", redirect: "error",
      headers: accept ? { ...headers(json !== undefined), accept } : headers(json !== undefined),
      body: json === undefined ? undefined : JSON.stringify(json),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, AWAY);
  }
  if (!answer.ok) throw refusal(answer.status, await answer.text());
  return answer;
}

/** The JSON that a route answers; null for 204. Raises `ApiError`. */
export async function call(method, where, options) {
  const answer = await send(method, where, options);
  return answer.status === 204 ? null : answer.json();
}

export const get = (where, query, signal) => call("GET", where, { query, signal });
export const text = async (where, query, signal) => (await send("GET", where, { query, signal })).text();
export const blob = async (where, query) => (await send("GET", where, { query })).blob();

/** The values of a stream of events, as they come. An event with an `error` is raised. */
export async function* events(where, { query, json, signal }) {
  const answer = await send("POST", where, { query, json, signal, accept: "text/event-stream" });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError(0, { message: "The connection broke before the answer was whole.", code: "broken_off" });
      const lines = (rest + value).split("\n\n");
      rest = lines.pop();
      for (const line of lines) {
        const data = line.slice("data: ".length);
        if (data === "[DONE]") return;
        const found = JSON.parse(data);
        if (found.error) throw new ApiError(answer.status, found.error);
        yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Sends files, telling `onProgress` how much of them has gone (0 to 1): fetch can't. */
export function upload(where, query, files, { onProgress, signal }) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    for (const file of files) form.append(file.name, file, file.name);
    const request = new XMLHttpRequest();
    request.open("PUT", address(where, query));
    for (const [name, value] of Object.entries(headers(false))) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => event.lengthComputable && onProgress(event.loaded / event.total));
    request.addEventListener("load", () => {
      if (request.status < 300) resolve({ status: request.status, version: JSON.parse(request.responseText) });
      else reject(refusal(request.status, request.responseText));
    });
    request.addEventListener("error", () => reject(new ApiError(0, AWAY)));
    request.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}
