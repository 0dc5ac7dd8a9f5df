// The search page: the address is the state; everything else is drawn from it.

import * as address from "./address.js";
import { Detail } from "./detail.js";
import { Grid } from "./grid.js";
import { Results } from "./results.js";
import { Selection } from "./selection.js";
import { ask } from "./service.js";
import { Failures, Status } from "./status.js";
import * as words from "./words.js";

const PAUSE = 200; // ms without typing before a search starts
const FILES = 8; // examples taken from one drop
const REMEMBERED = 8; // searches whose results are kept for Back
const find = (id) => document.getElementById(id);
const box = find("words");

let query = address.read(location.search);
let results = null; // what is shown
let fault = null; // the error that is shown instead
let typing = false; // the last search came from typing, and more typing replaces it in the history
let uploads = []; // examples on their way to the service: {name, address}
let status = null;
const kept = new Map(); // query string -> results
const known = new Map(); // key or vector -> {name, thumbnail, modality} of an example

history.scrollRestoration = "manual";

// ---- the address ----

function navigate(changes, { replace = false, hash = "" } = {}) {
  const next = address.write({ ...query, ...changes });
  const to = `${location.pathname}${next && "?"}${next}${hash}`;
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
    find(view).hidden = view !== name;
    const link = find(`to-${view}`);
    view === name ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  if (box.value.trim() !== query.words) box.value = query.words;
  drawQuery();
  if (!results || fault || address.write(query) !== before) search(back);
  else if (back && name === "images" && !key) grid.place();
  current.watch(name === "service");
  if (name === "failures") failures.load();
  if (name !== "images") find(`${name}-title`).focus({ preventScroll: true });
  open(name === "images" ? key : null);
}

addEventListener("popstate", () => {
  typing = false;
  route(true);
});

// Back leads to where one was.
let scrolled;
const keepScroll = () => history.replaceState({ ...history.state, scroll: scrollY }, "");
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

let turn = 0;
let stop = new AbortController();

async function search(back = false) {
  const mine = ++turn;
  stop.abort(); // an older answer is of no use
  stop = new AbortController();
  const ranked = address.ranked(query);
  const sort = query.sort && (ranked || query.sort !== "score") ? query.sort : ranked ? "score" : "newest";
  const said = address.write({ ...query, sort });
  const scroll = back ? (history.state?.scroll ?? 0) : 0;
  let next = back ? kept.get(said) : null;
  clearTimeout(retry);
  if (!next) {
    const late = setTimeout(() => find("results").setAttribute("aria-busy", "true"), 150);
    // Thumbnails that are still coming would hold the connections that the answer needs.
    for (const image of find("results").querySelectorAll("img[src]")) if (!image.complete) image.removeAttribute("src");
    try {
      next = await new Results(said, { ranked, sort, group: query.group }, stop.signal, grown).start();
    } catch (error) {
      if (mine === turn) refused(error);
      return;
    } finally {
      clearTimeout(late);
      if (mine === turn) find("results").removeAttribute("aria-busy");
    }
    if (mine !== turn) return;
  }
  kept.delete(said);
  kept.set(said, next);
  if (kept.size > REMEMBERED) kept.delete(kept.keys().next().value);
  fault = null;
  results = next;
  stop = new AbortController(); // what is shown may go on fetching
  for (const hit of results.hits) if (hit && known.get(hit.key)?.name === "") learn(hit);
  find("notice").hidden = true;
  find("results").hidden = false;
  scrollTo(0, Math.min(scroll, scrollY || scroll));
  grid.show(results.sections());
  scrollTo(0, scroll);
  tell();
  folders();
  drawQuery();
}

function grown() {
  if (!results) return;
  const lines = grid.sections.length;
  const sections = results.sections();
  if (results.group || sections.length !== lines || results.count !== grid.counted) grid.grow(sections);
  else grid.refresh();
  tell();
  if (wished != null) open(wished);
}

// What was found, for eyes and ears.
function tell() {
  const { count, answer } = results;
  grid.counted = count;
  const all = answer.count;
  const line = results.line;
  let said = words.plural(all, "image");
  if (results.ranked && answer.line != null) {
    const above = line ?? results.hits.findLastIndex((hit) => hit && hit.score >= answer.line) + 1;
    said = `${above ? words.number(above) : "None"}${line == null ? " or more" : ""} of ${words.plural(all, "image")} above the line`;
    if (results.sort !== "score") said = `The ${words.number(count)} nearest of ${words.plural(all, "image")}`;
  }
  find("count").textContent = count ? said : "No images";
  find("count").title = answer.line == null ? "" : "The line: so high would the best score be by chance, if no image had anything to do with the search.";
  document.title = `${query.words || (query.terms.length ? "Like examples" : "All images")} – ${status?.collection?.name ?? "Search images"}`;
  drawEmpty();
}

let retry;
function refused(error) {
  if (error.name === "AbortError") return;
  fault = error;
  find("notice").hidden = false;
  find("notice").querySelector("p").textContent = error.message ?? String(error);
  find("results").hidden = true;
  find("empty").hidden = true;
  find("count").textContent = "";
  clearTimeout(retry);
  if (error.wait) retry = setTimeout(() => (document.hidden ? refused(error) : search()), error.wait * 1000);
}
find("notice").querySelector("button").addEventListener("click", () => search());

function drawEmpty() {
  const empty = find("empty");
  const filtered = Object.keys(query.filters).length > 0;
  empty.hidden = !results || results.count > 0 || Boolean(fault);
  if (empty.hidden) return;
  const busy = ["looking", "embedding"].includes(status?.run?.state);
  const [title, said, code] =
    status && !status.collection ? ["No collection", "This service embeds for programs. To search images here, start it with a collection:", "image-encoders serve --collection COLLECTION"]
    : filtered ? ["No image fits these filters", "Wider dates, a smaller size or a folder further up may.", ""]
    : busy ? ["The first images are on their way", "They appear here as they are embedded; you can search them at once.", ""]
    : ["Nothing is embedded yet", "Embed a folder of images into this collection, and they appear here:", "image-encoders encode FOLDER -o COLLECTION"];
  empty.querySelector("h2").textContent = title;
  empty.querySelector("p").textContent = said;
  empty.querySelector("code").textContent = code;
  empty.querySelector("code").hidden = !code;
  empty.querySelector("button").hidden = !filtered;
}

// ---- tiles ----

function fill(tile, index) {
  const hit = results.hits[index];
  const [link, pick, more] = tile.children;
  tile.dataset.hit = index;
  tile.classList.toggle("waiting", !hit);
  pick.hidden = more.hidden = !hit;
  if (!hit) return;
  if (tile.dataset.key !== hit.key) {
    tile.dataset.key = hit.key;
    link.href = `#image=${encodeURIComponent(hit.key)}`;
    const image = link.querySelector("img");
    const shape = hit.width / hit.height;
    image.classList.toggle("long", shape > 2.2 || shape < 0.45);
    image.dataset.src = `${hit.thumbnail}?size=256`;
    link.querySelector(".name").textContent = hit.name;
    link.title = [hit.folder, hit.name].filter(Boolean).join("/");
    pick.setAttribute("aria-label", `Select ${hit.name}`);
    more.setAttribute("aria-label", `More like ${hit.name}`);
    const close = results.ranked ? words.closeness(hit, results.answer) : null;
    const bar = link.querySelector(".bar");
    bar.hidden = !close;
    if (close) {
      bar.title = `${close.word}: ${close.tip}`;
      bar.firstChild.style.width = `${close.part * 100}%`;
      link.querySelector(".match").textContent = `, ${close.word}`;
      tile.classList.toggle("low", close.over < 0);
    }
  }
  const on = selection.has(hit.key);
  pick.checked = on;
  tile.classList.toggle("on", on);
}

find("results").addEventListener("error", (event) => event.target.closest("li")?.classList.add("gone"), true);
find("results").addEventListener("load", (event) => event.target.classList.add("there"), true);

find("results").addEventListener("click", (event) => {
  const tile = event.target.closest("li");
  const hit = results?.hits[tile?.dataset.hit];
  if (!hit) return;
  const position = Number(tile.dataset.position);
  if (event.target.closest("button")) return more(hit);
  const link = event.target.closest("a");
  if (event.target.type === "checkbox") return select(position, event.shiftKey, event.target.checked);
  if (!link) return;
  event.preventDefault();
  if (event.shiftKey || event.ctrlKey || event.metaKey) return select(position, event.shiftKey, !selection.has(hit.key));
  navigate({}, { hash: link.hash });
});

find("results").addEventListener("keydown", (event) => {
  const hit = results?.hits[event.target.closest("li")?.dataset.hit];
  if (hit && event.key === " " && event.target.closest("a")) {
    event.preventDefault();
    select(grid.current, event.shiftKey, !selection.has(hit.key));
  } else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    selection.set(results.hits.filter(Boolean), true);
  }
});

// ---- selecting ----

const selection = new Selection(find("selection"), {
  changed: () => grid.refresh(),
  like: (hits) => {
    hits.forEach(learn);
    navigate({ words: "", terms: hits.slice(0, FILES).map((hit) => ({ kind: "key", sign: 1, value: hit.key })) });
  },
});

let last = 0; // where a range begins
async function select(position, range, on) {
  const [from, to] = range ? [Math.min(last, position), Math.max(last, position)] : [position, position];
  last = position;
  const shown = results;
  const hits = Array.from({ length: to - from + 1 }, (_, step) => grid.hit(from + step));
  await shown.need(hits).catch(refused);
  selection.set(hits.map((at) => shown.hits[at]).filter(Boolean), range || on);
}

// ---- one image, large ----

const detail = new Detail(find("detail"), {
  go: (step) => {
    const position = grid.position(results.hits.findIndex((hit) => hit?.key === detail.hit.key));
    const hit = position == null ? null : results.hits[grid.hit(position + step)];
    if (!hit) return;
    grid.reveal(position + step);
    grid.current = position + step;
    history.replaceState(history.state, "", `#image=${encodeURIComponent(hit.key)}`);
    open(hit.key);
  },
  act: (what, hit) => {
    if (what === "more") more(hit);
    if (what === "add" || what === "subtract") example(hit, what === "add" ? 1 : -1);
    if (what === "select") {
      selection.set([hit], !selection.has(hit.key));
      open(hit.key);
    }
  },
  close: () => (history.state?.opened ? history.back() : navigate({}, { replace: true })),
});

let wished = null; // the key that the address asks to show
async function open(key) {
  const was = detail.open;
  wished = key;
  if (!key) {
    detail.hide();
    if (was && results && !find("images").hidden) grid.focus(grid.current);
    return;
  }
  if (!results) return; // the search calls again
  const index = results.hits.findIndex((hit) => hit?.key === key);
  const position = index < 0 ? null : grid.position(index);
  let hit = results.hits[index];
  if (!hit) {
    const answer = await ask(`search.json?like=${encodeURIComponent(key)}&k=1`).catch(() => null);
    hit = answer?.hits.find((other) => other.key === key);
    if (wished !== key) return;
    if (!hit) return navigate({}, { replace: true });
  }
  const neighbour = (step) => position == null || !results.hits[grid.hit(position + step)];
  if (position != null) grid.current = position;
  detail.show(hit, results.ranked && index >= 0 ? results.answer : null, {
    selected: selection.has(key), first: position == null || position === 0 || neighbour(-1), last: position == null || position === grid.size - 1 || neighbour(1),
  });
}

// ---- the query: words and examples ----

function learn(hit) {
  known.set(hit.key, { name: hit.name, thumbnail: `${hit.thumbnail}?size=256`, modality: "image" });
}

function more(hit) {
  typing = false;
  learn(hit);
  navigate({ words: "", terms: [{ kind: "key", sign: 1, value: hit.key }] });
}

function example(hit, sign) {
  typing = false;
  learn(hit);
  const others = query.terms.filter((term) => term.value !== hit.key);
  navigate({ terms: [...others, { kind: "key", sign, value: hit.key }] });
}

let pause;
box.addEventListener("input", (event) => {
  find("wordy").hidden = !box.value;
  clearTimeout(pause);
  if (!event.isComposing) pause = setTimeout(typed, PAUSE);
});
box.addEventListener("compositionend", () => (pause = setTimeout(typed, PAUSE)));
box.addEventListener("blur", () => {
  if (box.value.trim() !== query.words) typed();
  typing = false;
});

function typed() {
  clearTimeout(pause);
  if (box.value.trim() === query.words && address.view(location.hash).name === "images") return;
  navigate({ words: box.value.trim() }, { replace: typing });
  typing = true;
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  typed();
  typing = false;
});
find("clear").addEventListener("click", () => {
  box.value = "";
  box.focus();
  typed();
  find("wordy").hidden = true;
});
for (const [id, sign] of [["keep", 1], ["without", -1]]) {
  find(id).addEventListener("click", () => {
    const value = box.value.trim();
    clearTimeout(pause);
    typing = false;
    box.value = "";
    if (value) navigate({ words: "", terms: [...query.terms, { kind: "text", sign, value }] });
    find("wordy").hidden = true;
    box.focus();
  });
}

// Chips: examples, further words and filters; each can be turned round or taken away.
function drawQuery() {
  find("wordy").hidden = !box.value;
  const chips = [];
  const chip = (name, { kind, thumbnail, sign, busy }, off, turn) => {
    const item = find("chip").content.firstElementChild.cloneNode(true);
    const [signed, image, icon, label, remove] = item.children;
    const uses = item.querySelectorAll("use");
    label.textContent = name;
    item.classList.toggle("minus", sign < 0);
    item.classList.toggle("busy", Boolean(busy));
    signed.hidden = !turn;
    if (turn) {
      uses[0].setAttribute("href", sign < 0 ? "#i-minus" : "#i-plus");
      signed.title = sign < 0 ? "Subtracted; press to add" : "Added; press to subtract";
      signed.setAttribute("aria-label", `${sign < 0 ? "Subtracted" : "Added"}: ${name}. Press to ${sign < 0 ? "add" : "subtract"}`);
      signed.addEventListener("click", turn);
    }
    image.hidden = !thumbnail;
    if (thumbnail) image.src = thumbnail;
    icon.toggleAttribute("hidden", Boolean(thumbnail));
    uses[1].setAttribute("href", `#i-${kind}`);
    remove.setAttribute("aria-label", `Remove ${name}`);
    remove.addEventListener("click", off);
    chips.push(item);
  };
  query.terms.forEach((term, at) => {
    const facts = term.kind === "text" ? { name: term.value } : recall(term);
    const others = query.terms.filter((_, place) => place !== at);
    chip(facts.name || "an image", { kind: term.kind === "text" ? "word" : facts.modality ?? "image", thumbnail: facts.thumbnail, sign: term.sign },
      () => navigate({ terms: others }), () => navigate({ terms: query.terms.with(at, { ...term, sign: -term.sign }) }));
  });
  uploads.forEach((upload) => chip(upload.name, { kind: upload.kind, thumbnail: upload.preview, sign: 1, busy: true }, () => upload.stop.abort()));
  const filters = { folder: "in ", from: "from ", to: "until ", min_width: "width from ", min_height: "height from " };
  for (const [name, value] of Object.entries(query.filters)) {
    const said = name === "from" || name === "to" ? words.date(`${value}T00:00`, false) || value : value;
    chip(filters[name] + said, { kind: "filter" }, () => navigate({ filters: { ...query.filters, [name]: "" } }));
  }
  find("terms").replaceChildren(...chips);
  find("terms").hidden = !chips.length;
  const ranked = address.ranked(query);
  find("sort").options[0].hidden = find("sort").options[0].disabled = !ranked;
  find("sort").value = query.sort && (ranked || query.sort !== "score") ? query.sort : ranked ? "score" : "newest";
  find("group").value = query.group;
  for (const name of address.FILTERS) find("filters").elements[name].value = query.filters[name] ?? "";
}

// The name and thumbnail of an example: an uploaded one's are kept for the session, a stored one's the service has.
function recall({ kind, value }) {
  if (known.has(value)) return known.get(value);
  let facts = null;
  if (kind === "vector") {
    try {
      facts = JSON.parse(sessionStorage.getItem(`vector ${value}`));
    } catch { /* as if it had not been kept */ }
    facts ??= { name: "an example" };
  } else facts = { name: "", thumbnail: `thumbnails/${encodeURIComponent(value)}?size=256` };
  known.set(value, facts);
  return facts;
}

find("sort").addEventListener("change", (event) => navigate({ sort: event.target.value }));
find("group").addEventListener("change", (event) => navigate({ group: event.target.value }));
find("filter").addEventListener("click", () => {
  const shown = !find("filters").toggleAttribute("hidden");
  find("filter").setAttribute("aria-expanded", shown);
  if (shown) find("filters").elements.folder.focus();
});
const filtered = () => {
  if (find("filters").reportValidity()) navigate({ filters: Object.fromEntries(address.FILTERS.map((name) => [name, find("filters").elements[name].value.trim()])) });
};
find("filters").addEventListener("change", filtered);
find("filters").addEventListener("submit", (event) => (event.preventDefault(), filtered()));
find("filters").addEventListener("reset", (event) => (event.preventDefault(), navigate({ filters: {} })));
find("empty").querySelector("button").addEventListener("click", () => navigate({ filters: {} }));

const places = new Set();
function folders() {
  for (const hit of results.hits) if (hit?.folder && places.size < 500) places.add(hit.folder);
  find("folders").replaceChildren(...[...places].sort().map((place) => new Option(place, place)));
}

// ---- files: dropped, pasted or picked ----

const takes = (modality) => !status || status.modalities.includes(modality);

async function upload(files) {
  for (const file of [...files].slice(0, FILES)) {
    const kind = file.type.startsWith("audio/") ? "audio" : "image";
    if (!takes(kind)) {
      refused(new Error(`${status.model} has no ${kind} tower, so it cannot search by ${kind === "audio" ? "a sound" : "an image"}.`));
      continue;
    }
    const preview = file.type.startsWith("image/") ? URL.createObjectURL(file) : null;
    const entry = { name: file.name || "pasted image", kind: kind === "audio" ? "sound" : "image", preview, stop: new AbortController() };
    uploads.push(entry);
    drawQuery();
    try {
      const headers = { Accept: "application/json", "Content-Type": file.type || "application/octet-stream" };
      const got = await ask("v1/queries", { method: "POST", body: file, headers, signal: entry.stop.signal });
      const facts = { name: entry.name, thumbnail: got.thumbnail ?? null, modality: got.modality === "audio" ? "sound" : "image" };
      known.set(got.vector, facts);
      try {
        sessionStorage.setItem(`vector ${got.vector}`, JSON.stringify(facts));
      } catch { /* full: the chip loses its image when the page is loaded again */ }
      uploads = uploads.filter((other) => other !== entry);
      typing = false;
      navigate({ terms: [...query.terms, { kind: "vector", sign: 1, value: got.vector }] });
    } catch (error) {
      uploads = uploads.filter((other) => other !== entry);
      drawQuery();
      if (error.name !== "AbortError") refused(Object.assign(error, { message: `${entry.name}: ${error.message}`, wait: null }));
    } finally {
      if (preview) URL.revokeObjectURL(preview);
    }
  }
}

find("pick").addEventListener("click", () => find("file").click());
find("file").addEventListener("change", () => {
  upload(find("file").files);
  find("file").value = "";
});
addEventListener("paste", (event) => {
  const files = event.clipboardData?.files ?? [];
  if (files.length) {
    event.preventDefault();
    upload(files);
  } else if (!event.target.closest?.("input, textarea") && takes("text") && !detail.open) {
    box.value = event.clipboardData?.getData("text/plain").trim().slice(0, box.maxLength) ?? "";
    typed();
  }
});
const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = "copy";
  find("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("drop").hidden = true;
});
addEventListener("drop", (event) => {
  find("drop").hidden = true;
  if (!holdsFiles(event)) return;
  event.preventDefault();
  upload(event.dataTransfer.files);
});

addEventListener("keydown", (event) => {
  if (event.target.closest?.("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey || detail.open) return;
  if (event.key === "/" && !box.hidden) {
    event.preventDefault();
    box.focus();
    box.select();
  } else if (event.key === "Escape" && selection.hits.size) selection.clear();
});
box.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" && grid.size) {
    event.preventDefault();
    grid.focus(grid.current);
  }
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  grid.size ? grid.focus(grid.current) : find("results").focus();
});

// ---- what the service is doing ----

const failures = new Failures();
const current = new Status((now) => {
  const first = !status;
  status = now;
  find("title").textContent = now.collection?.name ?? "Search images";
  const text = takes("text");
  box.hidden = !text;
  find("wordless").hidden = text;
  const files = ["image", takes("audio") && "audio"].filter(Boolean);
  find("pick").title = files.length > 1 ? "Search by an image or a sound" : "Search by an image";
  find("file").accept = files.map((kind) => `${kind}/*`).join();
  find("drop").firstElementChild.textContent = files.length > 1 ? "Drop an image or a sound to search by it" : "Drop an image to search by it";
  if (!text) find("wordless").textContent = `Drop or paste an image: ${now.model} knows no words`;
  if (first && results) tell();
  const added = (now.collection?.images ?? 0) - seen;
  if (first || !results) seen = now.collection?.images ?? 0;
  else if (added > 0 && !results.count) refresh();
  else {
    find("fresh").hidden = added <= 0;
    find("fresh").textContent = `Show ${words.plural(added, "new image")}`;
    drawEmpty();
  }
});
let seen = 0; // images of the collection when it was last searched
function refresh() {
  seen = status?.collection?.images ?? 0;
  find("fresh").hidden = true;
  kept.clear();
  search();
}
find("fresh").addEventListener("click", refresh);

route(true);
