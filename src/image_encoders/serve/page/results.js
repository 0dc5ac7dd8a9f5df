// The hits of one search, fetched by the page as they come into sight.

import { ask } from "./service.js";
import * as words from "./words.js";

const PAGE = 200; // hits
const GROUPED = 1000; // hits, of which groups are made

export class Results {
	// said: the query string; ranked: whether hits have scores; changed: called when more hits are there
	constructor(said, { ranked, sort, group }, signal, changed) {
		Object.assign(this, { said, ranked, sort, group, signal, changed, hits: [], count: Infinity });
		this.page = group ? GROUPED : PAGE;
		this.asked = new Map(); // page -> its promise
		this.groups = new Map(); // name -> places of hits
	}

	async start() {
		this.answer = await this.fetch(0);
		this.answer.best = Math.max(0, ...this.hits.map((hit) => hit.above ?? 0));
		if (!this.group) this.count = Math.min(this.count, this.answer.count);
		return this;
	}

	fetch(page) {
		if (!this.asked.has(page)) this.asked.set(page, this.load(page).catch((error) => (this.asked.delete(page), Promise.reject(error))));
		return this.asked.get(page);
	}

	async load(page) {
		const offset = page * this.page;
		const answer = await ask(`search.json?${this.said}&k=${this.page}&offset=${offset}`, { signal: this.signal });
		answer.hits.forEach((hit, at) => (this.hits[offset + at] = hit));
		for (const { name, hits } of answer.groups ?? []) this.groups.set(name, [...(this.groups.get(name) ?? []), ...hits.map((at) => offset + at)]);
		this.more = answer.next != null;
		if (!this.more) this.count = Math.min(this.count, offset + answer.hits.length);
		if (this.group) this.count = this.hits.length;
		return answer;
	}

	// Fetches the pages that hold these hits.
	async need(places) {
		const pages = new Set(places.filter((at) => at < this.count && !this.hits[at]).map((at) => Math.floor(at / this.page)));
		const missing = [...pages].filter((page) => !this.asked.has(page));
		await Promise.all([...pages].map((page) => this.fetch(page)));
		if (missing.length) this.changed();
	}

	// Groups are made of the hits that are there; this gets more of them.
	async needMore() {
		const next = this.asked.size;
		if (!this.group || !this.more || this.hits.length < next * this.page) return;
		await this.fetch(next);
		this.changed();
	}

	// Where hits begin that are no better than chance; null while not seen.
	get line() {
		const { line } = this.answer;
		if (!this.ranked || line == null) return null;
		const below = this.hits.findIndex((hit) => hit && hit.score < line);
		if (below < 0) return this.more || this.hits.length < this.count ? null : this.count;
		return below && !this.hits[below - 1] ? null : below;
	}

	sections() {
		if (this.group) {
			const { line } = this.answer;
			const fine = (at) => !this.ranked || line == null || this.hits[at].score >= line;
			const any = this.hits.some((_, at) => fine(at));
			return [...this.groups].flatMap(([name, all]) => {
				const places = any ? all.filter(fine) : all;
				const size = places.length;
				return size ? { title: words.group(name), note: words.plural(size, "image"), size, hit: (at) => places[at] } : [];
			});
		}
		const line = (this.sort === "score" ? this.line : null) ?? this.count;
		const above = { size: line, hit: (at) => at };
		if (line === this.count) return [above];
		const rest = { size: this.count - line, hit: (at) => line + at, low: true };
		return line
			? [above, { ...rest, title: "Below the line", note: "no closer than chance" }]
			: [{ ...rest, title: "No image is above the line", note: "these are no closer than chance; other words may find more" }];
	}
}
