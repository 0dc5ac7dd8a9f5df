// A grid of any number of tiles; only those near the window are in the document.

import { copy, element, held } from "./dom.js";

const HEAD = 56; // px above a section with a title
const CAPTION = 44; // px below an image
const AHEAD = 800; // px drawn beyond the window
const TALLEST = 15e6; // px: browsers end elements a little above this

export class Grid {
	// A section is {title, note, size, hit: place in it -> place among the hits}.
	// fill(tile, place): shows a hit; need(places): they are in sight; end(): so are the last ones
	constructor(root, { fill, need, end }) {
		Object.assign(this, { root, fill, need, end, sections: [], size: 0 });
		this.current = 0; // the position that Tab leads to; positions count tiles over all sections
		this.tiles = new Map(); // position -> tile
		addEventListener("scroll", () => (this.frame ??= requestAnimationFrame(() => this.draw())), { passive: true });
		new ResizeObserver(() => root.clientWidth && this.width !== root.clientWidth && this.place(this.anchor())).observe(root);
		root.addEventListener("keydown", (event) => this.key(event));
		root.addEventListener("focusin", ({ target }) => target.closest("li") && this.point(+target.closest("li").dataset.position));
	}

	// New results, or the same ones (then grown) of which more is known.
	show(sections, grown) {
		const sizes = (all) => all.map(({ size }) => size).join();
		if (grown && sizes(sections) === sizes(this.sections)) return this.refresh();
		const inside = this.root.contains(document.activeElement);
		const anchor = grown && this.anchor();
		const focused = grown && document.activeElement.closest("#results li")?.dataset.hit;
		this.root.replaceChildren();
		this.tiles.clear();
		this.sections = sections;
		if (!grown) this.current = 0;
		this.place(anchor);
		if (inside && !grown) this.tiles.get(0)?.firstElementChild.focus({ preventScroll: true });
		if (focused) this.focus(this.position(+focused) ?? this.current);
	}

	refresh() {
		for (const [position, tile] of this.tiles) this.fill(tile, this.hit(position));
	}

	place(anchor) {
		this.width = this.root.clientWidth;
		const small = this.width < 640;
		this.gap = small ? 8 : 16;
		this.columns = Math.max(2, Math.floor((this.width + this.gap) / ((small ? 140 : 200) + this.gap)));
		this.side = Math.floor((this.width + this.gap) / this.columns) - this.gap;
		this.row = this.side + CAPTION + this.gap;
		let top = 0;
		this.size = 0;
		for (const section of this.sections) {
			const head = top + (section.title ? HEAD : 0);
			const shown = Math.min(section.size, Math.max(0, Math.floor((TALLEST - head) / this.row)) * this.columns);
			Object.assign(section, { top, head, shown, first: this.size, end: head + Math.ceil(shown / this.columns) * this.row });
			top = section.end;
			this.size += shown;
		}
		this.root.style.height = `${top}px`;
		for (const part of this.root.children) this.stretch(part);
		for (const [position, tile] of this.tiles) this.put(tile, position);
		const position = anchor && this.position(anchor.hit);
		if (position != null) scrollTo(0, this.top(position) + this.root.offsetTop - anchor.below);
		this.draw();
	}

	section = (position) => this.sections.find(({ first, shown }) => position < first + shown);

	hit(position) {
		const section = this.section(position);
		return section?.hit(position - section.first);
	}

	position(hit) {
		for (let at = 0; at < this.size; at++) if (this.hit(at) === hit) return at;
		return null;
	}

	top(position) {
		const { head, first } = this.section(position);
		return head + Math.floor((position - first) / this.columns) * this.row;
	}

	// The first hit in the window, and how far below its edge it stands.
	anchor() {
		const start = scrollY - this.root.offsetTop;
		const seen = [...this.tiles.keys()].filter((position) => this.top(position) >= start);
		if (start <= 0 || !seen.length) return null;
		const first = Math.min(...seen);
		return { hit: this.hit(first), below: this.top(first) - start };
	}

	draw() {
		this.frame = null;
		const start = scrollY - this.root.offsetTop;
		const fast = Math.abs(start - (this.last ?? start)) > innerHeight;
		this.last = start;
		const [from, to] = [start - AHEAD, start + innerHeight + AHEAD];
		const wanted = new Map();
		for (const section of this.sections) {
			if (section.end < from || section.top > to) continue;
			const row = (y) => Math.floor((y - section.head) / this.row);
			const end = Math.min(section.shown, (row(to) + 1) * this.columns);
			for (let at = Math.max(0, row(from)) * this.columns; at < end; at++) wanted.set(section.first + at, section);
		}
		const focused = document.activeElement.closest("#results li");
		for (const [position, tile] of this.tiles) {
			if (wanted.has(position) || tile === focused) continue;
			tile.querySelector("img").removeAttribute("src"); // frees its connection
			tile.remove();
			this.tiles.delete(position);
		}
		for (const [position, section] of wanted) {
			if (this.tiles.has(position)) continue;
			const tile = copy("tile");
			tile.dataset.position = position;
			this.tiles.set(position, tile);
			this.put(tile, position);
			this.fill(tile, this.hit(position));
			this.list(section).append(tile);
		}
		for (const part of [...this.root.children]) if (!part.querySelector("li")) part.remove();
		// Tab from above leads to what is seen.
		const away = !this.tiles.has(this.current) && this.tiles.size;
		this.point(away ? Math.min(...this.tiles.keys()) : this.current);
		clearTimeout(this.resting);
		this.resting = setTimeout(() => this.rest([...wanted.keys()], to), fast ? 120 : 0);
	}

	// What was in sight for a while is fetched; what rushed by is not.
	rest(positions, to) {
		this.need(positions.map((position) => this.hit(position)));
		for (const image of this.root.querySelectorAll("img[data-src]")) {
			image.src = image.dataset.src;
			delete image.dataset.src;
		}
		if (this.sections.at(-1)?.end < to) this.end();
	}

	// The list of a section, made when its first tile is.
	list(section) {
		const at = this.sections.indexOf(section);
		const there = [...this.root.children];
		const found = there.find(({ dataset }) => +dataset.section === at);
		if (found) return found.lastElementChild;
		const list = element("ul");
		list.role = "list"; // Safari forgets it where lists have no bullets
		list.ariaLabel = section.title ?? "Results";
		const made = element("section", section.title ? element("h2", section.title, " ", element("small", section.note)) : "", list);
		made.dataset.section = at;
		made.className = section.low ? "low" : "";
		this.stretch(made);
		this.root.insertBefore(made, there.find(({ dataset }) => dataset.section > at) ?? null);
		return list;
	}

	stretch(part) {
		const { top, end } = this.sections[part.dataset.section];
		Object.assign(part.style, { transform: `translateY(${top}px)`, height: `${end - top}px` });
	}

	put(tile, position) {
		const { first, size } = this.section(position);
		const at = position - first;
		const [x, y] = [(at % this.columns) * (this.side + this.gap), Math.floor(at / this.columns) * this.row];
		Object.assign(tile.style, { transform: `translate(${x}px, ${y}px)`, width: `${this.side}px`, height: `${this.side + CAPTION}px` });
		tile.setAttribute("aria-posinset", at + 1);
		tile.setAttribute("aria-setsize", size);
	}

	// Tab leads to one tile only; arrows lead on from it.
	point(position) {
		for (const at of [this.current, position]) {
			for (const part of this.tiles.get(at)?.children ?? []) part.tabIndex = at === position ? 0 : -1;
		}
		this.current = position;
	}

	focus(position) {
		if (!this.size) return;
		position = Math.min(Math.max(position, 0), this.size - 1);
		this.reveal(position);
		this.draw();
		this.point(position);
		this.tiles.get(position)?.firstElementChild.focus({ preventScroll: true });
	}

	reveal(position) {
		const head = document.querySelector("header").offsetHeight + 12;
		const top = this.top(position) + this.root.offsetTop;
		if (top < scrollY + head) scrollTo(0, top - head);
		else if (top + this.row > scrollY + innerHeight) scrollTo(0, top + this.row - innerHeight + 60);
	}

	key(event) {
		if (held(event) || !event.target.closest("li a")) return;
		const at = this.current;
		const page = Math.max(1, Math.floor(innerHeight / this.row) - 1) * this.columns;
		const to = {
			ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: this.size - 1, PageUp: at - page, PageDown: at + page,
			ArrowUp: at - this.columns, ArrowDown: at + this.columns,
		}[event.key];
		if (to == null) return;
		event.preventDefault();
		this.focus(to);
	}
}
