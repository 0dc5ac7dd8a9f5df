// Numbers, dates and names as people read them.

export const number = (value) => value.toLocaleString("en");
export const figure = (value) => (value == null ? "–" : value.toLocaleString("en", { maximumSignificantDigits: 3 }));
export const plural = (count, one) => `${number(count)} ${one}${count === 1 ? "" : "s"}`;

export const sentence = (said) => said[0].toUpperCase() + said.slice(1) + (/[.!?…]$/.test(said) ? "" : ".");

// A file's name without what could turn its letters round.
export const name = (text) => text.replace(/[\p{Cc}\u202a-\u202e\u2066-\u2069]/gu, "\ufffd");

export function size(bytes) {
	const step = Math.min(3, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
	return `${figure(bytes / 1000 ** step)} ${["bytes", "kB", "MB", "GB"][step]}`;
}

export function date(text, shown = { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" }) {
	const when = new Date(text ?? "");
	return isNaN(when) ? "" : when.toLocaleString("en", shown);
}
export const onDay = (text) => date(`${text}T00:00`, { dateStyle: "medium" }) || text;

export function span(seconds) {
	const [unit, length] = seconds < 90 ? ["second", 1] : seconds < 5400 ? ["minute", 60] : ["hour", 3600];
	return plural(Math.round(seconds / length) || 1, unit);
}

export const group = (said) => date(/^\d{4}-\d\d$/.test(said) ? `${said}-01T00:00` : "", { month: "long", year: "numeric" }) || name(said) || "Top folder";

// A cosine says nothing to people: what counts is how far it lies above what just any image of the collection has, and
// whether so many images would have as much by chance.
export function closeness(hit, { usual, line, best }) {
	if (hit.above == null || !usual || line == null) return null;
	const chance = (line - usual.score) / (usual.spread || 1);
	const over = hit.above - chance;
	return {
		over,
		word: over < 0 ? "No better than chance" : over < 1 ? "Slight match" : over < 3 ? "Good match" : "Strong match",
		part: Math.min(1, Math.max(0.04, hit.above / Math.max(best, chance + 3))),
		tip: `score ${hit.score.toFixed(3)}; just any image here has about ${usual.score.toFixed(3)}, and by chance none more than ${line.toFixed(3)}`,
	};
}
