// Shows the server's routes by Swagger UI. Below a proxy's path they are called where this page is.

const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", dress);
dress();

const response = await fetch("openapi.json");
const spec = await response.json();
const base = new URL(".", location.href).pathname;
if (base !== "/") spec.servers = [{ url: base }];

window.SwaggerUIBundle({
  spec,
  dom_id: "#routes",
  deepLinking: true,
  showExtensions: false,
  validatorUrl: null,
});
