// The search page: the address is the state; everything else is drawn from it.

import * as address from "./address.js";
import { Detail } from "./detail.js";
import { copy, element, find, held, hide } from "./dom.js";
import { Grid } from "./grid.js";
import { Results } from "./results.js";
import { Selection } from "./selection.js";
import { ask } from "./service.js";
import { busy, showFailures, Status } from "./status.js";
import * as words from "./words.js";

const PAUSE = 200; // ms without typing before a search
const FILES = 8; // examples taken at once
const [box, list, filters] = ["words", "results", "filters"].map(find);

let query = address.read(location.search);
let results, status;
let seen; // images at the last search
let typing = false; // more typing replaces the last search
let uploads = []; // on their way

history.scrollRestoration = "manual";

function navigate(changes, { replace = false, hash = "" } = {}) {
	settled();
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
	if (!results || list.hidden || address.write(query) !== before) search(back);
	else if (back && name === "images") scrollTo(0, history.state?.scroll ?? 0);
	watcher.watch(name === "service");
	if (name === "failures") showFailures();
	if (name !== "images") find(`${name}-title`).focus();
	open(key);
}

window.onpopstate = () => {
	settled();
	route(true);
};

// Back leads to where one was.
const keepScroll = () => find("see-images").hidden || history.replaceState({ ...history.state, scroll: scrollY }, "");
let scrolled;
addEventListener("scroll", () => {
	clearTimeout(scrolled);
	scrolled = setTimeout(keepScroll, 200);
}, { passive: true });

const grid = new Grid(list, {
	fill,
	need: (hits) => results?.need(hits).catch(refused),
	end: () => results?.needMore().catch(refused),
});

let stop = new AbortController();
let retry;

async function search(back = false) {
	stop.abort(); // an older answer
	const { signal } = (stop = new AbortController());
	clearTimeout(retry);
	clearTimeout(scrolled);
	const [ranked, said] = [address.ranked(query), address.write({ ...query, sort: sort() })];
	const scroll = (back && history.state?.scroll) || 0;
	list.ariaBusy = true;
	// Thumbnails still on their way would hold the connections that the answer needs.
	for (const image of list.querySelectorAll("img[src]")) if (!image.complete) image.removeAttribute("src");
	try {
		const next = await new Results(said, { ranked, sort: sort(), group: query.group }, signal, grown).start();
		if (signal.aborted) return;
		results = next;
	} catch (error) {
		return refused(error);
	}
	list.ariaBusy = false;
	seen = status?.collection?.images;
	hide("results", false);
	for (const id of ["notice", "fresh"]) hide(id, true);
	grid.show(results.sections());
	scrollTo(0, scroll);
	tell();
	open(shownKey());
}

function grown() {
	if (this !== results) return;
	grid.show(results.sections(), true);
	tell();
	open(shownKey());
}

const sort = () => (address.ranked(query) ? query.sort || "score" : query.sort.replace("score", "") || "newest");

// What was found, for eyes and ears.
function tell() {
	const { answer, line, hits } = results;
	const all = words.plural(answer.count, "image");
	const above = (!results.group && line) || hits.filter((hit) => hit.score >= answer.line).length;
	find("count").textContent =
		!results.ranked || answer.line == null ? all
		: results.group && above ? `${words.plural(above, "image")} above the line`
		: results.group || results.sort !== "score" ? `The nearest ${all}`
		: `${above ? words.number(above) : "None"}${line == null ? " or more" : ""} of ${all} above the line`;
	document.title = `${query.words || (results.ranked ? "Like these" : "All images")} – ${find("title").textContent}`;
	for (const hit of hits) if (hit?.folder) places.add(hit.folder);
	find("folders").replaceChildren(...[...places].slice(0, 500).sort().map((place) => new Option(place)));
	drawEmpty();
}
const places = new Set();

// Why there is no answer; `instead` of results, or above them.
function refused(error, instead = true) {
	if (error.name === "AbortError") return;
	find("said").textContent = error.message;
	hide("notice", false);
	if (instead) {
		find("count").textContent = "";
		hide("results", true);
		hide("empty", true);
		clearTimeout(retry);
		if (error.wait) retry = setTimeout(search, error.wait * 1000);
	}
	find("again").textContent = list.hidden ? "Try again" : "Close";
}
find("fresh").onclick = () => search();
find("again").onclick = () => (list.hidden ? search() : hide("notice", true));

function drawEmpty() {
	hide("empty", !results || results.count || list.hidden);
	const [title, said, code] =
		query.filters.length ? ["No image fits these filters", "Wider ones may find some."]
		: busy(status) ? ["The first images are on their way", "They appear here as they are embedded."]
		: status?.run ? ["No image in the folder yet", "Images appear here by themselves."]
		: ["Nothing is embedded yet", "To embed images:", "image-encoders encode FOLDER -o COLLECTION"];
	find("empty").replaceChildren(element("h2", title), element("p", said), code ? element("code", code) : "");
}

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
	link.title = words.name(`${hit.folder}/${hit.name}`);
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

list.addEventListener("load", ({ target }) => target.classList.add("there"), true);

const hitOf = ({ target }) => results?.hits[target.closest("li")?.dataset.hit];
list.onclick = (event) => {
	const { target, shiftKey } = event;
	const tile = target.closest("li");
	const link = target.closest("li a");
	if (link) event.preventDefault();
	if (link ? shiftKey || event.ctrlKey || event.metaKey : target.type === "checkbox") return select(+tile.dataset.position, shiftKey);
	const hit = hitOf(event);
	if (hit && link) navigate({}, { hash: link.hash });
	else if (hit && target.closest("button")) more(hit);
};
list.onkeydown = (event) => {
	const all = event.key === "a" && (event.ctrlKey || event.metaKey);
	if (!all && !(event.key === " " && event.target.closest("a") && hitOf(event))) return;
	event.preventDefault();
	if (all) selection.set(results.hits.filter(Boolean), true);
	else select(grid.current, event.shiftKey);
};

const selection = new Selection(() => grid.refresh());

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
		if (what === "more") more(hit);
		else if (what === "select") open(hit.key, selection.set([hit], !selection.hits.has(hit.key)));
		else more(hit, what === "add" ? 1 : -1, query);
	},
	close: () => (history.state?.opened ? history.back() : navigate({}, { replace: true })),
});

const shownKey = () => address.view(location.hash).key;
async function open(key) {
	if (!key) {
		const [was, at] = [find("detail").open, grid.current];
		find("detail").close();
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
		if (shownKey() !== key) return;
		if (!hit) return navigate({}, { replace: true });
	}
	if (position != null) grid.point(position);
	const none = (step) => position == null || !(position + step >= 0 && results.hits[grid.hit(position + step)]);
	detail.show(hit, results.ranked && place >= 0 && results.answer, { selected: selection.hits.has(key), first: none(-1), last: none(1) });
}

// An example's name and thumbnail are kept for the session; the address has its key or embedding.
function remember(value, facts) {
	try {
		sessionStorage[`of ${value}`] = JSON.stringify(facts);
	} catch { /* full: the chip is a plain one */ }
}
const recall = ({ kind, value }) =>
	kind === "text" ? { name: value }
	: JSON.parse(sessionStorage[`of ${value}`] ?? null) ?? { name: "an example", thumbnail: kind === "key" && `thumbnails/${value}?size=256` };

// More like an image, in place of what was searched for or, with `to`, added to it.
function more({ key, name, thumbnail }, sign = 1, to = { words: "", terms: [] }) {
	remember(key, { name, thumbnail: `${thumbnail}?size=256` });
	const others = to.terms.filter(({ value }) => value !== key);
	navigate({ words: to.words, terms: [...others, { kind: "key", sign, value: key }] });
}

let pause;
const settled = () => (clearTimeout(pause), (typing = false));
function typed() {
	clearTimeout(pause);
	const said = box.value.trim();
	if (said === query.words) return;
	navigate({ words: said }, { replace: typing });
	typing = true;
}
function wait() {
	clearTimeout(pause);
	hide("wordy", !box.value);
	pause = setTimeout(typed, PAUSE);
}
const settle = () => (typed(), (typing = false));
box.oninput = (event) => event.isComposing || wait();
box.addEventListener("compositionend", wait);
box.onchange = box.onblur = settle; // a change is also Enter
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

// Chips: examples, further words and filters.
function drawQuery() {
	hide("wordy", !box.value);
	const chip = (said, off, { thumbnail, sign, turn } = {}) => {
		const item = copy("chip");
		const [signed, image, label, remove] = item.children;
		const name = (label.textContent = words.name(said));
		const [is, act] = sign < 0 ? ["minus", "Add"] : ["plus", "Subtract"];
		item.className = is;
		signed.hidden = !turn;
		signed.ariaLabel = signed.title = `${act} ${name}`;
		signed.querySelector("use").setAttribute("href", `#i-${is}`);
		signed.onclick = turn;
		image.hidden = !thumbnail;
		if (thumbnail) image.src = thumbnail;
		remove.ariaLabel = remove.title = `Remove ${name}`;
		remove.onclick = off;
		return item;
	};
	const lead = { folder: "in", to: "until", min_width: "width from", min_height: "height from" };
	const chips = [
		...query.terms.map((term, at) => {
			const turn = () => navigate({ terms: query.terms.with(at, { ...term, sign: -term.sign }) });
			return chip(recall(term).name, () => navigate({ terms: query.terms.toSpliced(at, 1) }), { ...term, ...recall(term), turn });
		}),
		...uploads.map(({ name, stop }) => chip(`${name}…`, () => stop.abort())),
		...query.filters.map(([name, value], at) =>
			chip(`${lead[name] ?? name} ${name.length < 5 ? words.onDay(value) : value}`, () => navigate({ filters: query.filters.toSpliced(at, 1) }))),
	];
	find("terms").replaceChildren(...chips);
	hide("terms", !chips.length);
	const [best] = find("sort").options;
	best.hidden = best.disabled = !address.ranked(query);
	find("sort").value = sort();
	find("group").value = query.group;
	const set = { ...Object.fromEntries(query.filters), where: "" }; // its field adds another one
	for (const name of address.FILTERS) filters[name].value = set[name] ?? "";
}

for (const id of ["sort", "group"]) find(id).onchange = ({ target }) => navigate({ [id]: target.value });
find("filter").onclick = () => {
	find("filter").ariaExpanded = filters.hidden;
	filters.hidden = !filters.hidden;
};
filters.onchange = () => {
	if (filters.reportValidity()) navigate({ filters: [...query.filters.filter(([name]) => name === "where"), ...new FormData(filters)] });
};
filters.onreset = () => navigate({ filters: [] });

const takes = (modality) => !status?.model || status.modalities.includes(modality);

async function upload(files) {
	for (const file of [...files].slice(0, FILES)) {
		const sound = file.type.startsWith("audio/");
		const entry = { name: (sound ? "♪ " : "") + file.name, stop: new AbortController() };
		uploads.push(entry);
		drawQuery();
		try {
			if (sound && !takes("audio")) throw Error(`${status.model} has no audio tower, so it cannot search by a sound.`);
			const headers = { "Content-Type": file.type || "application/octet-stream" };
			const { vector, thumbnail } = await ask("v1/queries", { method: "POST", body: file, headers, signal: entry.stop.signal });
			remember(vector, { name: entry.name, thumbnail });
			typing = false;
			typed();
			navigate({ terms: [...query.terms, { kind: "vector", sign: 1, value: vector }] });
		} catch (error) {
			if (error.name !== "AbortError") refused(Error(`${words.name(entry.name)}: ${error.message}`), false);
		}
		uploads = uploads.filter((other) => other !== entry);
		drawQuery();
	}
}

find("pick").onclick = () => find("file").click();
find("file").onchange = ({ target }) => upload(target.files).then(() => (target.value = ""));
document.onpaste = (event) => {
	const { files } = event.clipboardData;
	if (files.length) event.preventDefault();
	upload(files);
	if (files.length || find("detail").open || !takes("text") || event.target.closest("input")) return;
	box.value = event.clipboardData.getData("text/plain").trim().slice(0, box.maxLength);
	settle();
};
window.ondragover = window.ondrop = (event) => {
	if (!event.dataTransfer.types.includes("Files")) return;
	event.preventDefault();
	hide("drop", event.type === "drop");
	if (event.type === "drop") upload(event.dataTransfer.files);
};
window.ondragleave = ({ relatedTarget }) => relatedTarget || hide("drop", true);

window.onkeydown = (event) => {
	if (event.key === "ArrowDown" && event.target === box) event.preventDefault(grid.focus(grid.current));
	if (event.target.closest("input, select") || held(event) || find("detail").open) return;
	if (event.key === "/") event.preventDefault(box.focus());
	if (event.key === "Escape") selection.clear();
};

const watcher = new Status((now) => {
	const [was, paused] = [status?.collection, status?.run?.state === "paused"];
	status = now;
	find("title").textContent = now.collection?.name ?? "Search images";
	const text = takes("text");
	box.hidden = !text;
	hide("wordless", text);
	find("wordless").textContent = `Drop or paste an image: ${now.model} has no text tower`;
	const [files, types] = takes("audio") ? ["an image or a sound", "image/*,audio/*"] : ["an image", "image/*"];
	find("pick").title = `Search by ${files}`;
	find("file").accept = types;
	find("drop").textContent = `Drop ${files} to search by it`;
	const images = now.collection?.images;
	seen ??= images;
	const more = images - seen || 0;
	hide("fresh", !more);
	find("fresh").textContent = more > 0 ? `Show ${words.plural(more, "new image")}` : `Hide ${words.plural(-more, "deleted image")}`;
	if (list.hidden ? images !== was?.images : more > 0 && results && !results.count) search();
	if (results) tell();
	// Thumbnails were refused while the folder was out of reach.
	if (paused && now.run?.state !== "paused") for (const image of list.querySelectorAll("img[src]:not(.there)")) image.src = image.src;
	if (now.collection?.failures !== was?.failures && !find("see-failures").hidden) showFailures();
});

location.search || !matchMedia("(hover)").matches || box.focus();
route(true);
