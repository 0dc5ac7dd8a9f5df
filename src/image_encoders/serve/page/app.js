// The search page: the address is the state; everything else is drawn from it.

import * as address from "./address.js";
import { Detail } from "./detail.js";
import { element, find, hide } from "./dom.js";
import { Grid } from "./grid.js";
import { Results } from "./results.js";
import { Selection } from "./selection.js";
import { ask } from "./service.js";
import { busy, showFailures, Status } from "./status.js";
import * as words from "./words.js";

const PAUSE = 200; // ms without typing before a search starts
const FILES = 8; // examples taken at once
const KEPT = 8; // searches whose results are kept for Back
const box = find("words");

let query = address.read(location.search);
let results, status;
let typing = false; // the last search came from typing, and more typing replaces it in the history
let uploads = []; // examples on their way to the service
const kept = new Map(); // query string -> results

history.scrollRestoration = "manual";

// ---- the address ----

function navigate(changes, { replace = false, hash = "" } = {}) {
	clearTimeout(pause);
	typing = false;
	const said = address.write({ ...query, ...changes });
	const to = location.pathname + (said && `?${said}`) + hash;
	if (to !== location.pathname + location.search + location.hash) {
		keepScroll();
		history[replace ? "replaceState" : "pushState"]({ opened: Boolean(hash) }, "", to);
	}
	route();
}

function route(back = false) {
	const before = address.write(query);
	query = address.read(location.search);
	const { name, key } = address.view(location.hash);
	for (const view of ["images", "failures", "service"]) {
		hide(`see-${view}`, view !== name);
		find(`to-${view}`).setAttribute("aria-current", view === name);
	}
	if (box.value.trim() !== query.words) box.value = query.words;
	drawQuery();
	if (!results || !find("notice").hidden || address.write(query) !== before) search(back);
	else if (back && name === "images") scrollTo(0, history.state?.scroll ?? 0);
	watcher.watch(name === "service");
	if (name === "failures") showFailures();
	if (name !== "images") find(`${name}-title`).focus();
	open(key);
}

addEventListener("popstate", () => {
	clearTimeout(pause);
	typing = false;
	route(true);
});

// Back leads to where one was.
const keepScroll = () => find("see-images").hidden || history.replaceState({ ...history.state, scroll: scrollY }, "");
let scrolled;
addEventListener("scroll", () => {
	clearTimeout(scrolled);
	scrolled = setTimeout(keepScroll, 200);
}, { passive: true });

// ---- searching ----

const grid = new Grid(find("results"), find("tile"), {
	fill,
	need: (hits) => results?.need(hits).catch(refused),
	end: () => results?.needMore().catch(refused),
});

let stop = new AbortController();
let retry;

async function search(back = false) {
	stop.abort(); // an older answer is of no use
	const { signal } = (stop = new AbortController());
	clearTimeout(retry);
	clearTimeout(scrolled);
	const ranked = address.ranked(query);
	const said = address.write({ ...query, sort: sort() });
	const scroll = (back && history.state?.scroll) || 0;
	let next = back && kept.get(said);
	if (!next) {
		find("results").ariaBusy = true;
		// Thumbnails that are still coming would hold the connections that the answer needs.
		for (const image of find("results").querySelectorAll("img[src]")) if (!image.complete) image.removeAttribute("src");
		try {
			next = await new Results(said, { ranked, sort: sort(), group: query.group }, signal, grown).start();
		} catch (error) {
			return refused(error);
		}
		if (signal.aborted) return;
	}
	kept.delete(said);
	kept.set(said, next);
	if (kept.size > KEPT) kept.delete(kept.keys().next().value);
	stop = new AbortController(); // what is shown may go on fetching
	results = next;
	find("results").ariaBusy = false;
	hide("results", false);
	hide("notice", true);
	grid.show(results.sections());
	scrollTo(0, scroll);
	tell();
	drawQuery();
	open(address.view(location.hash).key);
}

function grown() {
	if (this !== results) return;
	grid.show(results.sections(), true);
	tell();
	open(address.view(location.hash).key);
}

const sort = () => (address.ranked(query) ? query.sort || "score" : query.sort.replace("score", "") || "newest");

// What was found, for eyes and ears.
function tell() {
	const { answer, line, hits } = results;
	const all = words.plural(answer.count, "image");
	const above = line ?? hits.filter((hit) => hit.score >= answer.line).length;
	find("count").textContent =
		!results.ranked || answer.line == null ? all
		: results.sort !== "score" || results.group ? `The nearest ${all}`
		: `${above ? words.number(above) : "None"}${line == null ? " or more" : ""} of ${all} above the line`;
	document.title = `${query.words || (results.ranked ? "Like these" : "All images")} – ${find("title").textContent}`;
	for (const hit of hits) if (hit?.folder) places.add(hit.folder);
	find("folders").replaceChildren(...[...places].slice(0, 500).sort().map((place) => new Option(place, place)));
	drawEmpty();
}
const places = new Set();

function refused(error) {
	if (error.name === "AbortError") return;
	find("said").textContent = error.message;
	find("count").textContent = "";
	hide("notice", false);
	hide("results", true);
	hide("empty", true);
	clearTimeout(retry);
	if (error.wait) retry = setTimeout(() => (document.hidden ? refused(error) : search()), error.wait * 1000);
}
find("again").onclick = () => search();

function drawEmpty() {
	hide("empty", !results || results.count || !find("notice").hidden);
	const filtered = Object.keys(query.filters).length;
	const [title, said, code] =
		filtered ? ["No image fits these filters", "Wider dates, a smaller size or a folder further up may."]
		: busy(status) ? ["The first images are on their way", "They appear here as they are embedded."]
		: ["Nothing is embedded yet", "Embed a folder of images into this collection, and they appear here:", "image-encoders encode FOLDER -o COLLECTION"];
	find("empty").replaceChildren(element("h2", title), element("p", said), code ? element("code", code) : "");
}

// ---- tiles ----

function fill(tile, place) {
	const hit = results.hits[place];
	const [link, pick, more] = tile.children;
	tile.dataset.hit = place;
	pick.hidden = more.hidden = !hit;
	if (!hit) return;
	pick.checked = selection.hits.has(hit.key);
	if (link.hash) return;
	link.href = `#image=${hit.key}`;
	const [thumb, name, bar, match] = link.children;
	const shape = hit.width / hit.height;
	thumb.firstChild.classList.toggle("long", shape > 2.2 || shape < 0.45);
	thumb.firstChild.dataset.src = `${hit.thumbnail}?size=256`;
	name.textContent = words.name(hit.name);
	link.title = words.name(hit.folder ? `${hit.folder}/${hit.name}` : hit.name);
	pick.ariaLabel = `Select ${name.textContent}`;
	more.ariaLabel = `More like ${name.textContent}`;
	const close = results.ranked && words.closeness(hit, results.answer);
	bar.hidden = !close;
	if (!close) return;
	bar.title = `${close.word}: ${close.tip}`;
	bar.firstChild.style.width = `${close.part * 100}%`;
	match.textContent = `, ${close.word}`;
	tile.classList.toggle("low", close.over < 0);
}

find("results").addEventListener("error", ({ target }) => target.closest("li").classList.add("gone"), true);
find("results").addEventListener("load", ({ target }) => target.classList.add("there"), true);

const hitOf = (event) => results?.hits[event.target.closest("li")?.dataset.hit];
find("results").addEventListener("click", (event) => {
	const hit = hitOf(event);
	if (!hit) return;
	const position = +event.target.closest("li").dataset.position;
	const link = event.target.closest("a");
	if (event.target.type === "checkbox") return select(position, event.shiftKey);
	if (event.target.closest("button")) return more([hit]);
	if (!link) return;
	event.preventDefault();
	if (event.shiftKey || event.ctrlKey || event.metaKey) select(position, event.shiftKey);
	else navigate({}, { hash: link.hash });
});
find("results").addEventListener("keydown", (event) => {
	const all = event.key === "a" && (event.ctrlKey || event.metaKey);
	if (!all && !(event.key === " " && event.target.closest("a") && hitOf(event))) return;
	event.preventDefault();
	if (all) selection.set(results.hits.filter(Boolean), true);
	else select(grid.current, event.shiftKey);
});

// ---- selecting ----

const selection = new Selection({ changed: () => grid.refresh(), like: more });

let start = 0; // where a range begins
async function select(position, range) {
	const [from, to] = range ? [start, position].sort((a, b) => a - b) : [position, position];
	start = position;
	const shown = results;
	const at = Array.from({ length: to - from + 1 }, (_, step) => grid.hit(from + step));
	await shown.need(at).catch(refused);
	const hits = at.map((place) => shown.hits[place]).filter(Boolean);
	selection.set(hits, range || !selection.hits.has(hits[0]?.key));
}

// ---- one image, large ----

const detail = new Detail({
	go(step) {
		const position = grid.current + step;
		const hit = results.hits[grid.hit(position)];
		if (!hit || position < 0) return;
		grid.reveal(position);
		history.replaceState(history.state, "", `#image=${hit.key}`);
		open(hit.key);
	},
	act(what, hit) {
		if (what === "more") more([hit]);
		else if (what === "select") open(hit.key, selection.set([hit], !selection.hits.has(hit.key)));
		else more([hit], what === "add" ? 1 : -1, query);
	},
	close: () => (history.state?.opened ? history.back() : navigate({}, { replace: true })),
});

async function open(key) {
	if (!key) {
		const [was, at] = [detail.open, grid.current];
		detail.hide();
		if (was && !find("see-images").hidden) grid.focus(at);
		return;
	}
	if (!results) return; // the search calls again
	const place = results.hits.findIndex((hit) => hit?.key === key);
	const position = place < 0 ? null : grid.position(place);
	let hit = results.hits[place];
	if (!hit) {
		const answer = await ask(`search.json?like=${key}&k=1`).catch(() => null);
		hit = answer?.hits.find((other) => other.key === key);
		if (address.view(location.hash).key !== key) return;
		if (!hit) return navigate({}, { replace: true });
	}
	if (position != null) grid.point(position);
	const none = (step) => position == null || !(position + step >= 0 && results.hits[grid.hit(position + step)]);
	detail.show(hit, results.ranked && place >= 0 && results.answer, { selected: selection.hits.has(key), first: none(-1), last: none(1) });
}

// ---- the query: words and examples ----

// The name and thumbnail of an example are kept for the session; the address has but its key or embedding.
function remember(value, facts) {
	try {
		sessionStorage[`of ${value}`] = JSON.stringify(facts);
	} catch { /* full: the chip is a plain one */ }
}
const recall = ({ kind, value }) => JSON.parse(sessionStorage[`of ${value}`] ?? null) ?? { name: "an example", thumbnail: kind === "key" ? `thumbnails/${value}?size=256` : null };

// More like these, in place of what was searched for or, with `to`, added to it.
function more(hits, sign = 1, to = { words: "", terms: [] }) {
	const found = hits.slice(0, FILES);
	for (const hit of found) remember(hit.key, { name: hit.name, thumbnail: `${hit.thumbnail}?size=256` });
	const others = to.terms.filter(({ value }) => found.every((hit) => hit.key !== value));
	navigate({ words: to.words, terms: [...others, ...found.map((hit) => ({ kind: "key", sign, value: hit.key }))] });
}

let pause;
function typed() {
	clearTimeout(pause);
	const said = box.value.trim();
	if (said === query.words) return;
	navigate({ words: said }, { replace: typing });
	typing = true;
}
function wait() {
	hide("wordy", !box.value);
	clearTimeout(pause);
	pause = setTimeout(typed, PAUSE);
}
const settle = () => {
	typed();
	typing = false;
};
box.addEventListener("input", (event) => event.isComposing || wait());
box.addEventListener("compositionend", wait);
box.addEventListener("blur", settle);
find("ask").addEventListener("submit", (event) => {
	event.preventDefault();
	settle();
	if (!find("see-images").hidden) return;
	navigate({});
});
find("clear").onclick = () => {
	box.value = "";
	box.focus();
	settle();
};
for (const [id, sign] of [["keep", 1], ["without", -1]]) {
	find(id).onclick = () => {
		const value = box.value.trim();
		box.value = "";
		navigate({ words: "", terms: [...query.terms, { kind: "text", sign, value }] });
		box.focus();
	};
}

// Chips: examples, further words and filters; each can be taken away, and what is searched for turned round.
function drawQuery() {
	hide("wordy", !box.value);
	const chip = (said, { icon, thumbnail, sign, off, turn }) => {
		const item = find("chip").content.firstElementChild.cloneNode(true);
		const [signed, image, kind, label, remove] = item.children;
		const name = (label.textContent = words.name(said));
		const minus = sign < 0;
		item.classList.toggle("minus", minus);
		signed.hidden = !turn;
		signed.ariaLabel = signed.title = `${minus ? "Add" : "Subtract"} ${name}`;
		signed.querySelector("use").setAttribute("href", minus ? "#i-minus" : "#i-plus");
		signed.onclick = turn;
		image.hidden = !thumbnail;
		if (thumbnail) image.src = thumbnail;
		else kind.firstChild.setAttribute("href", `#i-${icon}`);
		kind.toggleAttribute("hidden", Boolean(thumbnail));
		remove.ariaLabel = remove.title = `Remove ${name}`;
		remove.onclick = off;
		return item;
	};
	const lead = { folder: "in ", from: "from ", to: "until ", min_width: "width from ", min_height: "height from " };
	const chips = [
		...query.terms.map((term, at) => {
			const { name, thumbnail, icon = "image" } = term.kind === "text" ? { name: term.value, icon: "word" } : recall(term);
			const turn = () => navigate({ terms: query.terms.with(at, { ...term, sign: -term.sign }) });
			return chip(name, { icon, thumbnail, sign: term.sign, turn, off: () => navigate({ terms: query.terms.toSpliced(at, 1) }) });
		}),
		...uploads.map(({ name, icon, stop }) => chip(`${name}…`, { icon, off: () => stop.abort() })),
		...Object.entries(query.filters).map(([name, value]) => chip(lead[name] + (/^(from|to)$/.test(name) ? words.onDay(value) : value), {
			icon: "filter", off: () => navigate({ filters: { ...query.filters, [name]: "" } }),
		})),
	];
	find("terms").replaceChildren(...chips);
	hide("terms", !chips.length);
	const [best] = find("sort").options;
	best.hidden = best.disabled = !address.ranked(query);
	find("sort").value = sort();
	find("group").value = query.group;
	for (const name of address.FILTERS) find("filters")[name].value = query.filters[name] ?? "";
}

for (const id of ["sort", "group"]) find(id).onchange = ({ target }) => navigate({ [id]: target.value });
find("filter").onclick = () => {
	hide("filters", !find("filters").hidden);
	find("filter").ariaExpanded = !find("filters").hidden;
};
find("filters").onchange = () => {
	if (find("filters").reportValidity()) navigate({ filters: Object.fromEntries(new FormData(find("filters"))) });
};
find("filters").onsubmit = (event) => event.preventDefault();
find("filters").onreset = () => navigate({ filters: {} });

// ---- files: dropped, pasted or picked ----

const takes = (modality) => !status || status.modalities.includes(modality);

async function upload(files) {
	for (const file of [...files].slice(0, FILES)) {
		const sound = file.type.startsWith("audio/");
		const entry = { name: file.name || "pasted image", icon: sound ? "sound" : "image", stop: new AbortController() };
		uploads.push(entry);
		drawQuery();
		try {
			if (sound && !takes("audio")) throw Error(`${status.model} has no audio tower, so it cannot search by a sound.`);
			const headers = { Accept: "application/json", "Content-Type": file.type || "application/octet-stream" };
			const { vector, thumbnail } = await ask("v1/queries", { method: "POST", body: file, headers, signal: entry.stop.signal });
			remember(vector, { ...entry, thumbnail });
			uploads = uploads.filter((other) => other !== entry);
			navigate({ terms: [...query.terms, { kind: "vector", sign: 1, value: vector }] });
		} catch (error) {
			uploads = uploads.filter((other) => other !== entry);
			drawQuery();
			if (error.name !== "AbortError") refused(Error(`${words.name(entry.name)}: ${error.message}`));
		}
	}
}

find("pick").onclick = () => find("file").click();
find("file").onchange = ({ target }) => upload(target.files).then(() => (target.value = ""));
addEventListener("paste", (event) => {
	const { files } = event.clipboardData;
	if (files.length) event.preventDefault();
	upload(files);
	if (files.length || detail.open || !takes("text") || event.target.closest("input")) return;
	box.value = event.clipboardData.getData("text/plain").trim().slice(0, box.maxLength);
	settle();
});
const over = (event) => {
	if (!event.dataTransfer.types.includes("Files")) return;
	event.preventDefault();
	hide("drop", event.type === "drop");
	if (event.type === "drop") upload(event.dataTransfer.files);
};
addEventListener("dragover", over);
addEventListener("drop", over);
addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || hide("drop", true));

addEventListener("keydown", (event) => {
	if (event.key === "ArrowDown" && event.target === box) event.preventDefault(grid.focus(grid.current));
	if (event.target.closest("input, select") || event.ctrlKey || event.metaKey || event.altKey || detail.open) return;
	if (event.key === "/") event.preventDefault(box.focus());
	if (event.key === "Escape") selection.set([...selection.hits.values()], false);
});
document.querySelector(".skip").onclick = (event) => {
	event.preventDefault();
	grid.size ? grid.focus(grid.current) : find("results").focus();
};

// ---- what the service is doing ----

let seen = null; // images of the collection when it was last searched
const watcher = new Status((now) => {
	status = now;
	find("title").textContent = now.collection?.name ?? "Search images";
	const text = takes("text");
	box.hidden = !text;
	hide("wordless", text);
	find("wordless").textContent = `Drop or paste an image: ${now.model} has no text tower`;
	const files = takes("audio") ? "an image or a sound" : "an image";
	find("pick").title = `Search by ${files}`;
	find("file").accept = takes("audio") ? "image/*,audio/*" : "image/*";
	find("drop").textContent = `Drop ${files} to search by it`;
	const images = now.collection?.images ?? 0;
	seen ??= images;
	hide("fresh", images <= seen);
	find("fresh").textContent = `Show ${words.plural(images - seen, "new image")}`;
	if (images > seen && results && !results.count) fresh();
	if (results) tell();
});
function fresh() {
	seen = status.collection.images;
	hide("fresh", true);
	kept.clear();
	search();
}
find("fresh").onclick = fresh;

route(true);
