// The search, as the address says it after `?`, and what is shown of it, after `#`.

const TERMS = { q: ["text", 1], minus: ["text", -1], like: ["key", 1], unlike: ["key", -1], vector: ["vector", 1], unvector: ["vector", -1] };
export const FILTERS = ["folder", "from", "to", "min_width", "min_height", "where"];

// words: in the box; terms: other {kind, sign, value}, each a chip; filters: [name, value], likewise
export function read(search) {
	const query = { words: "", terms: [], sort: "", group: "", filters: [] };
	const params = new URLSearchParams(search);
	query.words = params.get("q") ?? "";
	let box = true; // the first q is what stands there, be it empty
	for (const [name, value] of params) {
		if (name === "q" && box) box = false;
		else if (!value) continue;
		else if (Object.hasOwn(TERMS, name)) query.terms.push({ kind: TERMS[name][0], sign: TERMS[name][1], value });
		else if (name === "sort" || name === "group") query[name] = value;
		else if (FILTERS.includes(name)) query.filters.push([name, value]);
	}
	return query;
}

export function write({ words, terms, filters, sort, group }) {
	const said = new URLSearchParams();
	const add = (name, value) => value && said.append(name, value);
	if (words.trim() || terms.some(({ kind, sign }) => kind === "text" && sign > 0)) said.append("q", words.trim());
	for (const { kind, sign, value } of terms) add(Object.keys(TERMS).find((name) => `${TERMS[name]}` === `${kind},${sign}`), value);
	for (const filter of filters) add(...filter);
	add("sort", sort);
	add("group", group);
	return said.toString();
}

export const ranked = ({ words, terms }) => Boolean(words.trim() || terms.length);

// The view, and the key of the image that is shown large.
export function view(hash) {
	if (hash === "#failures" || hash === "#service") return { name: hash.slice(1) };
	return { name: "images", key: hash.startsWith("#image=") ? hash.slice(7) : null };
}
