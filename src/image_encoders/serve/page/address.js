// What is searched for and how it is shown, as the page's address says it: `?...` is what the service is asked,
// `#...` is what the page shows beside it.

const TERMS = {
  q: ["text", 1], minus: ["text", -1],
  like: ["key", 1], unlike: ["key", -1],
  vector: ["vector", 1], unvector: ["vector", -1],
};
export const FILTERS = ["folder", "from", "to", "min_width", "min_height"];

// words: what stands in the box; terms: the other {kind, sign, value}, each a chip
export function read(search) {
  const query = { words: "", terms: [], sort: "", group: "", filters: {} };
  for (const [name, value] of new URLSearchParams(search)) {
    if (!value) continue;
    if (name === "q" && !query.words) query.words = value;
    else if (name in TERMS) query.terms.push({ kind: TERMS[name][0], sign: TERMS[name][1], value });
    else if (name === "sort" || name === "group") query[name] = value;
    else if (FILTERS.includes(name)) query.filters[name] = value;
  }
  return query;
}

export function write(query) {
  const said = new URLSearchParams();
  if (query.words.trim()) said.append("q", query.words.trim());
  for (const term of query.terms) {
    if (!term.value) continue; // still on its way to the service
    said.append(Object.keys(TERMS).find((name) => TERMS[name][0] === term.kind && TERMS[name][1] === term.sign), term.value);
  }
  for (const name of FILTERS) if (query.filters[name]) said.set(name, query.filters[name]);
  if (query.sort) said.set("sort", query.sort);
  if (query.group) said.set("group", query.group);
  return said.toString();
}

export const ranked = (query) => Boolean(query.words.trim() || query.terms.some((term) => term.value));

// The view that the address names: {name: "images", key} (a key's image is shown large), "failures" or "service".
export function view(hash) {
  if (hash === "#failures" || hash === "#service") return { name: hash.slice(1), key: null };
  return { name: "images", key: hash.startsWith("#image=") ? decodeURIComponent(hash.slice(7)) : null };
}
