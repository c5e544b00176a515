// Shows the server's routes by Swagger UI, with a key where the server has any. Below a proxy's path they are called where
// this page is. The key stays in the page's memory.

const root = new URL("../../", import.meta.url);
const place = document.getElementById("routes");

const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", dress);
dress();

const needed = (await (await fetch(new URL("console/access", root))).json()).keys;
if (needed) ask();
else show(await read(), null);

/** The routes; null where the key is none. Raises an `Error` for any other failure. */
async function read(key = null) {
  const response = await fetch(new URL("openapi.json", root), key === null ? {} : { headers: { authorization: `Bearer ${key}` } });
  if (response.status === 401) return null;
  if (!response.ok) throw new Error(`The server answered ${response.status}.`);
  return response.json();
}

function show(spec, key) {
  if (root.pathname !== "/") spec.servers = [{ url: root.pathname }];
  const shown = window.SwaggerUIBundle({
    spec,
    dom_id: "#routes",
    deepLinking: true,
    showExtensions: false,
    validatorUrl: null,
    onComplete: () => key !== null && shown.preauthorizeApiKey("key", key),
  });
}

/** Asks for a key until the server takes one; a proxy may send one of its own. */
async function ask() {
  const known = await read();
  if (known !== null) return show(known, null);
  const form = document.createElement("form");
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "password", autocomplete: "off", required: true });
  const button = Object.assign(document.createElement("button"), { textContent: "Show the routes" });
  const wrong = document.createElement("p");
  wrong.setAttribute("role", "alert");
  label.append("Key", input);
  form.append(label, button, wrong);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    wrong.textContent = "";
    try {
      const key = input.value.trim();
      const spec = /^[\x21-\x7e]+$/.test(key) ? await read(key) : null;
      if (spec !== null) return show(spec, key);
      wrong.textContent = "This key is unknown or was revoked; ask for a new one.";
    } catch (error) {
      wrong.textContent = error.message;
    }
  });
  place.replaceChildren(form);
  input.focus();
}
