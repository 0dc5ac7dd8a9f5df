// Numbers, dates and names as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const day = { day: "numeric", month: "short", year: "numeric" };
const clock = { ...day, hour: "2-digit", minute: "2-digit", hourCycle: "h23" };

export const number = (value) => whole.format(value);
export const figure = (value) => (value == null ? "–" : short.format(value));
export const plural = (count, one) => `${number(count)} ${one}${count === 1 ? "" : "s"}`;

// A file's name without what could turn its letters round.
export const name = (text) => text.replace(/[\p{Cc}\u202a-\u202e\u2066-\u2069]/gu, "\ufffd");

export function size(bytes) {
	if (bytes == null) return "";
	const step = Math.min(3, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
	return `${short.format(bytes / 1000 ** step)} ${["bytes", "kB", "MB", "GB"][step]}`;
}

export function date(text, shown = clock) {
	const when = new Date(text ?? "");
	return isNaN(when) ? "" : when.toLocaleString("en", shown);
}
export const onDay = (text) => date(`${text}T00:00`, day) || text;

export function span(seconds) {
	if (seconds < 90) return plural(Math.max(1, Math.round(seconds)), "second");
	return seconds < 5400 ? plural(Math.round(seconds / 60), "minute") : plural(Math.round(seconds / 3600), "hour");
}

export function group(said, kind) {
	if (!said) return kind === "folder" ? "The top folder" : "No date";
	return (kind === "month" && date(`${said}-01T00:00`, { month: "long", year: "numeric" })) || name(said);
}

// How a hit stands in its collection. A cosine says nothing to people: what counts is how far it lies above what this
// search gives for just any image, and whether so many images would give as much by chance.
export function closeness(hit, { usual, line, best }) {
	if (hit.above == null || !usual || line == null) return null;
	const chance = (line - usual.score) / (usual.spread || 1);
	const over = hit.above - chance;
	return {
		over,
		word: over < 0 ? "No better than chance" : over < 1 ? "Slight match" : over < 3 ? "Good match" : "Strong match",
		part: Math.min(1, Math.max(0.04, hit.above / Math.max(best, chance + 3))),
		tip: `${hit.above.toFixed(1)} times the usual spread above this collection’s usual score (${hit.score.toFixed(3)}; usual ${usual.score.toFixed(3)}, chance ends at ${line.toFixed(3)})`,
	};
}
