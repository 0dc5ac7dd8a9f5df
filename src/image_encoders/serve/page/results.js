// The hits of one search, fetched a page at a time as they come into sight.

import { ask } from "./service.js";
import * as words from "./words.js";

const PAGE = 200; // hits
const GROUPED = 1000; // hits, of which groups are made

export class Results {
  // query: the query string; ranked: whether hits have scores; changed: called when more hits are there
  constructor(query, { ranked, sort, group }, signal, changed) {
    Object.assign(this, { query, ranked, sort, group, signal, changed });
    this.page = group ? GROUPED : PAGE;
    this.hits = [];
    this.asked = new Map(); // page -> its promise
    this.groups = new Map(); // name -> hits
  }

  async start() {
    this.answer = await this.fetch(0);
    this.answer.best = this.hits.reduce((best, hit) => Math.max(best, hit.above ?? 0), 0);
    this.count = this.group || this.answer.next == null ? this.hits.length : this.answer.count;
    return this;
  }

  fetch(page) {
    if (!this.asked.has(page)) this.asked.set(page, this.load(page));
    return this.asked.get(page);
  }

  async load(page) {
    const offset = page * this.page;
    let answer;
    try {
      answer = await ask(`search.json?${this.query}${this.query && "&"}k=${this.page}&offset=${offset}`, { signal: this.signal });
    } catch (error) {
      this.asked.delete(page);
      throw error;
    }
    answer.hits.forEach((hit, at) => (this.hits[offset + at] = hit));
    for (const { name, hits } of answer.groups ?? []) {
      if (!this.groups.has(name)) this.groups.set(name, []);
      this.groups.get(name).push(...hits.map((at) => offset + at));
    }
    if (answer.next == null) this.count = Math.min(this.count ?? Infinity, offset + answer.hits.length);
    this.more = this.group ? answer.next != null : false;
    return answer;
  }

  // Fetches the pages that hold these hits.
  async need(indices) {
    const pages = new Set(indices.filter((at) => !this.hits[at] && at < this.count).map((at) => Math.floor(at / this.page)));
    const missing = [...pages].filter((page) => !this.asked.has(page));
    if (!missing.length) return;
    await Promise.all(missing.map((page) => this.fetch(page)));
    this.changed();
  }

  // Groups are made of the hits that are there; this gets more of them.
  async needMore() {
    if (!this.more || this.asked.has(this.asked.size)) return;
    await this.fetch(this.asked.size);
    this.count = this.hits.length;
    this.changed();
  }

  // Where the hits begin that are no better than chance; null while nobody has seen it.
  get line() {
    if (!this.ranked || this.answer.line == null) return null;
    const below = this.hits.findIndex((hit) => hit && hit.score < this.answer.line);
    if (below > 0 && !this.hits[below - 1]) return null;
    return below < 0 && this.hits.length < this.count ? null : below < 0 ? this.count : below;
  }

  sections() {
    if (this.group) {
      return [...this.groups].map(([name, hits]) => ({
        title: words.group(name, this.group), note: words.plural(hits.length, "image"), size: hits.length, hit: (at) => hits[at],
      }));
    }
    const line = this.sort === "score" ? this.line : null;
    if (line === null || line >= this.count) return [{ size: this.count, hit: (at) => at }];
    const rest = {
      title: line ? "Below the line" : "No image stands above the line",
      note: line ? "these are no closer than chance" : "the nearest ones are no closer than chance: other words may find more",
      size: this.count - line, hit: (at) => line + at, low: true,
    };
    return line ? [{ size: line, hit: (at) => at }, rest] : [rest];
  }
}
