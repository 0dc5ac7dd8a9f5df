// Numbers as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const day = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric" });
const time = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const month = new Intl.DateTimeFormat("en", { month: "long", year: "numeric" });

export const number = (value) => whole.format(value);
export const figure = (value) => (value == null ? "–" : short.format(value));
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

export function size(bytes) {
  if (bytes == null) return "";
  const units = ["bytes", "kB", "MB", "GB"];
  const step = Math.min(3, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
  return `${short.format(bytes / 1000 ** step)} ${units[step]}`;
}

export function date(text, clock = true) {
  const when = new Date(text ?? "");
  return isNaN(when) ? "" : (clock ? time : day).format(when);
}

export function span(seconds) {
  if (seconds == null) return "";
  if (seconds < 90) return plural(Math.max(1, Math.round(seconds)), "second");
  return seconds < 5400 ? plural(Math.round(seconds / 60), "minute") : plural(Math.round(seconds / 3600), "hour");
}

export function group(name, kind) {
  if (!name) return kind === "folder" ? "The top folder" : "No date";
  return kind === "month" && /^\d{4}-\d\d$/.test(name) ? month.format(new Date(`${name}-01T00:00`)) : name;
}

// How a hit stands in its collection. A cosine says nothing to people: what counts is how far it lies above what this
// search gives for just any image, and whether so many images would give as much by chance.
export function closeness(hit, answer) {
  if (hit.above == null || !answer?.usual || answer.line == null) return null;
  const chance = (answer.line - answer.usual.score) / (answer.usual.spread || 1);
  const over = hit.above - chance;
  const word = over < 0 ? "no better than chance" : over < 1 ? "slight match" : over < 3 ? "good match" : "strong match";
  return {
    word,
    over,
    part: Math.min(1, Math.max(0.04, hit.above / Math.max(answer.best ?? 0, chance + 3))),
    tip: `${hit.above.toFixed(1)} spreads above what is usual here (score ${hit.score.toFixed(3)}, usual ${answer.usual.score.toFixed(3)}; chance ends at ${answer.line.toFixed(3)})`,
  };
}
