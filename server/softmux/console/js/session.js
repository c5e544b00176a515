// Who is signed in, and what is served. The key is handed to api.js and forgotten here.

import * as api from "./api.js";

/** `who`: `/v1/whoami`; `model`: `/v1/model`; `keys`: whether this server has any. */
export const session = { who: null, model: null, keys: false };

const forgetting = [];
/** What a page keeps while the console is open, and must forget with the key. */
export const whenSignedOut = (forget) => forgetting.push(forget);

const ROLES = ["user", "publisher", "admin"];
export const may = (role) => session.who !== null && ROLES.indexOf(session.who.role) >= ROLES.indexOf(role);

/** Whether a key is needed to go on. Raises `ApiError`. */
export async function needsKey() {
  session.keys = (await api.get("console/access")).keys;
  return session.keys;
}

/** Signs in; without a key where the server has none. Raises `ApiError` for a key that is not taken. */
export async function signIn(key) {
  if (key !== null && !/^[\x21-\x7e]+$/.test(key)) throw new api.ApiError(401, { message: "This is no key: those hold neither spaces nor other letters than ASCII's. Copy it again.", code: "unauthorized" });
  api.useKey(key);
  try {
    const [who, model] = await Promise.all([api.get("v1/whoami"), api.get("v1/model")]);
    Object.assign(session, { who, model });
  } catch (error) {
    api.useKey(null);
    throw error;
  }
}

export function signOut() {
  api.useKey(null);
  Object.assign(session, { who: null, model: null });
  for (const forget of forgetting) forget();
}
