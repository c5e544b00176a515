// Prometheus' text format, and what follows from two readings of it.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { n: "\n", "\\": "\\", '"': '"' };

/** A map of names to samples, each its labels and its value. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) labels[name] = value.replace(/\\(.)/g, (_, letter) => ESCAPED[letter] ?? letter);
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: Number(match[3]) });
  }
  return found;
}

/** The sum over all samples of a name that `wanted` takes, or null where there is none. */
export function total(reading, name, wanted = () => true) {
  const samples = reading.get(name)?.filter(({ labels }) => wanted(labels));
  return samples?.length ? samples.reduce((sum, { value }) => sum + value, 0) : null;
}

/** How much a counter grew; null where it is not there, or began anew. */
export function growth(before, after, name, wanted) {
  const [old, now] = [total(before, name, wanted), total(after, name, wanted)];
  if (now === null) return null;
  return now >= (old ?? 0) ? now - (old ?? 0) : null;
}

function sums(reading, name, label) {
  const found = new Map();
  for (const { labels, value } of reading.get(name) ?? []) found.set(labels[label], (found.get(labels[label]) ?? 0) + value);
  return found;
}

/** Growth by a label's values. */
export function growthBy(before, after, name, label) {
  const old = sums(before, name, label);
  return new Map([...sums(after, name, label)].map(([key, value]) => [key, Math.max(0, value - (old.get(key) ?? 0))]));
}

/** The quantile of what a histogram observed between two readings, by Prometheus' rule: linear within a bucket. */
export function quantile(before, after, name, q) {
  const growths = growthBy(before, after, `${name}_bucket`, "le");
  const buckets = [...growths].map(([bound, value]) => [bound === "+Inf" ? Infinity : Number(bound), value]).sort((a, b) => a[0] - b[0]);
  const all = buckets.at(-1)?.[1] ?? 0;
  if (!all) return null;
  const rank = q * all;
  let [low, below] = [0, 0];
  for (const [bound, cumulative] of buckets) {
    if (cumulative >= rank) {
      if (bound === Infinity) return low;
      return cumulative === below ? bound : low + ((bound - low) * (rank - below)) / (cumulative - below);
    }
    [low, below] = [bound, cumulative];
  }
  return low;
}
