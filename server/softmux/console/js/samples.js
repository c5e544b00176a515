// The same call as a command and as Python. KEY stands for the key, which is never written down.

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Python's literal of a JSON value. */
function python(value, indent) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map((one) => python(one, indent)).join(", ")}]`;
  const inner = `${indent}    `;
  return `{\n${Object.entries(value).map(([name, one]) => `${inner}${JSON.stringify(name)}: ${python(one, inner)},\n`).join("")}${indent}}`;
}

/** `route` is `v1/generate` or `v1/classify`; `body` as it is sent. */
export function samples({ base, route, task, body, keys }) {
  const url = new URL(route, base).href;
  const curl = [
    `curl -s ${shell(url + (task ? `?task=${encodeURIComponent(task)}` : ""))}`,
    ...(keys ? ['-H "Authorization: Bearer $KEY"'] : []),
    "-H 'Content-Type: application/json'",
    `-d ${shell(JSON.stringify(body))}`,
  ].join(" \\\n  ");
  const call = [
    "import httpx", "",
    "answer = httpx.post(",
    `    ${JSON.stringify(url)},`,
    ...(task ? [`    params={"task": ${JSON.stringify(task)}},`] : []),
    ...(keys ? ['    headers={"Authorization": f"Bearer {KEY}"},'] : []),
    `    json=${python(body, "    ")},`,
    "    timeout=60,",
    ")",
    "answer.raise_for_status()",
    route.endsWith("generate") ? 'print(answer.json()["choices"][0]["text"])' : 'print(answer.json()["results"][0])',
  ].join("\n");
  return { curl, python: keys ? call.replace("import httpx\n", 'import os\n\nimport httpx\n\nKEY = os.environ["KEY"]') : call };
}
