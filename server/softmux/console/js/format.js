// Numbers, sizes and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => whole.format(value);
export const compact = (value) => (Math.abs(value) < 10000 ? whole.format(value) : short.format(value));

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${size < 10 && unit ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

export function seconds(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (value === 0) return "0 s";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 1) return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
  return `${value < 10 ? Math.round(value * 100) / 100 : Math.round(value)} s`;
}

export function rate(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  return value < 10 ? String(Math.round(value * 10) / 10) : compact(value);
}

export const percent = (value, digits = 0) => (value === null || !Number.isFinite(value) ? "–" : `${(100 * value).toFixed(digits)} %`);

const dated = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
export const date = (unix) => dated.format(new Date(unix * 1000));

const STEPS = [[60, "second"], [3600, "minute", 60], [86400, "hour", 3600], [86400 * 30, "day", 86400], [86400 * 365, "month", 86400 * 30], [Infinity, "year", 86400 * 365]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
export function ago(unix, now = Date.now() / 1000) {
  const passed = Math.max(0, now - unix);
  if (passed < 45) return "just now";
  const [, unit, size] = STEPS.find(([limit]) => passed < limit);
  return relative.format(-Math.max(1, Math.round(passed / (size ?? 1))), unit);
}

const METHODS = {
  prompt_tuning: "Prompt tuning", prefix_tuning: "Prefix tuning", p_tuning: "P-tuning", p_tuning_v2: "P-tuning v2",
  cpt: "CPT", cartridge: "Cartridge", lora: "LoRA", trainable_tokens: "Trained tokens",
};
/** A method as people write it; one that is not known here, or a pair, by its parts. */
export const method = (name) => name.split("+").map((part) => METHODS[part] ?? part).join(" + ");

/** The first characters of a digest, which tell versions apart by eye. */
export const digest = (value) => value.replace(/sha256:/g, "").split("+").map((one) => one.slice(0, 10)).join("+");
