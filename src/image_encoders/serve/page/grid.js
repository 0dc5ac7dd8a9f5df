// A grid of any number of tiles, of which only those near the window are in the document.

const HEAD = 56; // px above a section with a title
const CAPTION = 44; // px below an image
const AHEAD = 800; // px drawn beyond the window
const TALLEST = 15e6; // px: browsers end elements a little above this

export class Grid {
  // fill(tile, hit index): what a tile shows; need(hit indices): they are in sight; end(): the last ones are
  constructor(root, template, { fill, need, end }) {
    Object.assign(this, { root, template, fill, need, end });
    this.sections = [];
    this.tiles = new Map(); // position -> tile
    this.current = 0; // the position that Tab leads to
    this.size = 0;
    addEventListener("scroll", () => this.soon(), { passive: true });
    new ResizeObserver(() => this.width !== root.clientWidth && this.place(this.anchor())).observe(root);
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("focusin", (event) => {
      const tile = event.target.closest("li");
      if (tile) this.point(Number(tile.dataset.position));
    });
  }

  // The first of new results.
  show(sections) {
    this.root.replaceChildren();
    this.tiles.clear();
    this.sections = sections;
    this.current = 0;
    this.place();
  }

  // The same results, of which more is known.
  grow(sections) {
    const anchor = this.anchor();
    const focused = document.activeElement?.closest?.("#results li")?.dataset.hit;
    this.sections = sections;
    this.root.replaceChildren();
    this.tiles.clear();
    if (focused !== undefined) this.current = this.position(Number(focused)) ?? this.current;
    this.place(anchor);
    if (focused !== undefined) this.tiles.get(this.current)?.firstElementChild.focus({ preventScroll: true });
  }

  refresh() {
    for (const [position, tile] of this.tiles) this.fill(tile, this.hit(position));
  }

  // ---- where things are ----

  place(anchor) {
    this.width = this.root.clientWidth;
    const gap = (this.gap = this.width < 640 ? 8 : 16);
    this.columns = Math.max(2, Math.floor((this.width + gap) / ((this.width < 640 ? 140 : 200) + gap)));
    this.side = Math.floor((this.width - gap * (this.columns - 1)) / this.columns);
    this.row = this.side + CAPTION + gap;
    let top = 0;
    let first = 0;
    for (const section of this.sections) {
      section.head = section.title ? HEAD : 0;
      const rows = Math.max(0, Math.floor((TALLEST - top - section.head) / this.row));
      section.shown = Math.min(section.size, rows * this.columns);
      Object.assign(section, { top, first, height: section.head + Math.ceil(section.shown / this.columns) * this.row });
      top += section.height;
      first += section.shown;
    }
    this.size = first;
    this.root.style.height = `${top}px`;
    for (const element of this.root.children) this.frame(element);
    for (const [position, tile] of this.tiles) this.put(tile, position);
    if (anchor) {
      const position = this.position(anchor.hit);
      if (position != null) scrollTo(0, this.top(position) + this.root.offsetTop - anchor.below);
    }
    this.draw();
  }

  section(position) {
    return this.sections.find((section) => position < section.first + section.shown) ?? this.sections.at(-1);
  }

  hit(position) {
    const section = this.section(position);
    return section?.hit(position - section.first);
  }

  position(hit) {
    for (const section of this.sections) {
      for (let at = 0; at < section.shown; at++) if (section.hit(at) === hit) return section.first + at;
    }
    return null;
  }

  top(position) {
    const section = this.section(position);
    return section.top + section.head + Math.floor((position - section.first) / this.columns) * this.row;
  }

  // The first hit in the window, and how far below its edge it stands.
  anchor() {
    const offset = this.root.offsetTop;
    let best = null;
    for (const position of this.tiles.keys()) {
      const below = this.top(position) + offset - scrollY;
      if (below >= 0 && (!best || below < best.below)) best = { hit: this.hit(position), below };
    }
    return scrollY > offset ? best : null;
  }

  // ---- drawing ----

  soon() {
    this.frameAsked ??= requestAnimationFrame(() => {
      this.frameAsked = null;
      this.draw();
    });
  }

  draw() {
    const start = scrollY - this.root.offsetTop;
    const fast = Math.abs(start - (this.last ?? start)) > innerHeight;
    this.last = start;
    const from = start - AHEAD;
    const to = start + innerHeight + AHEAD;
    const wanted = new Map();
    for (const section of this.sections) {
      if (section.top + section.height < from || section.top > to) continue;
      const above = section.top + section.head;
      const begin = Math.max(0, Math.floor((from - above) / this.row)) * this.columns;
      const end = Math.min(section.shown, (Math.floor((to - above) / this.row) + 1) * this.columns);
      for (let at = begin; at < end; at++) wanted.set(section.first + at, section);
      if (section.title && !section.shown) wanted.set(-1, section);
    }
    const focused = document.activeElement?.closest?.("#results li");
    for (const [position, tile] of this.tiles) {
      if (wanted.has(position) || tile === focused) continue;
      tile.querySelector("img").removeAttribute("src"); // frees its connection
      tile.remove();
      this.tiles.delete(position);
    }
    for (const [position, section] of wanted) {
      if (this.tiles.has(position) || position < 0) continue;
      const tile = this.template.content.firstElementChild.cloneNode(true);
      tile.dataset.position = position;
      this.tiles.set(position, tile);
      this.put(tile, position);
      this.fill(tile, this.hit(position));
      this.list(section).append(tile);
    }
    for (const element of [...this.root.children]) if (!element.querySelector("li")) element.remove();
    this.point(Math.min(this.current, this.size - 1), true);
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.rest([...wanted.keys()], to), fast ? 120 : 0);
  }

  // What was in sight for a while is fetched; what rushed by is not.
  rest(positions, to) {
    this.need(positions.filter((position) => position >= 0).map((position) => this.hit(position)));
    for (const image of this.root.querySelectorAll("img[data-src]")) {
      image.src = image.dataset.src;
      delete image.dataset.src;
    }
    const last = this.sections.at(-1);
    if (last && last.top + last.height < to) this.end();
  }

  // The element of a section, made when its first tile is.
  list(section) {
    const at = String(this.sections.indexOf(section));
    let element = [...this.root.children].find((child) => child.dataset.section === at);
    if (!element) {
      element = document.createElement("section");
      element.dataset.section = at;
      element.classList.toggle("low", Boolean(section.low));
      if (section.title) {
        const title = element.appendChild(document.createElement("h2"));
        title.id = `section-${at}`;
        title.appendChild(document.createElement("bdi")).textContent = section.title;
        title.append(" ");
        title.appendChild(document.createElement("small")).textContent = section.note;
      }
      const list = element.appendChild(document.createElement("ul"));
      list.setAttribute("role", "list"); // Safari forgets it where lists have no bullets
      list.setAttribute("aria-label", section.title ?? "Results");
      this.frame(element);
      const after = [...this.root.children].find((child) => Number(child.dataset.section) > Number(at));
      this.root.insertBefore(element, after ?? null);
    }
    return element.lastElementChild;
  }

  frame(element) {
    const section = this.sections[element.dataset.section];
    element.style.transform = `translateY(${section.top}px)`;
    element.style.height = `${section.height}px`;
  }

  put(tile, position) {
    const section = this.section(position);
    const at = position - section.first;
    tile.style.transform = `translate(${(at % this.columns) * (this.side + this.gap)}px, ${Math.floor(at / this.columns) * this.row}px)`;
    tile.style.width = `${this.side}px`;
    tile.style.height = `${this.side + CAPTION}px`;
    tile.setAttribute("aria-posinset", at + 1);
    tile.setAttribute("aria-setsize", section.size);
  }

  // ---- keyboard ----

  // Tab leads to one tile only; arrows lead on from it.
  point(position, drawn = false) {
    if (position === this.current && !drawn) return;
    for (const at of [this.current, position]) {
      for (const part of this.tiles.get(at)?.querySelectorAll("a, input, button") ?? []) part.tabIndex = at === position ? 0 : -1;
    }
    this.current = Math.max(0, position);
    if (drawn && !this.tiles.has(this.current) && this.tiles.size && !this.root.contains(document.activeElement)) {
      this.point(Math.min(...this.tiles.keys())); // Tab from above leads to what is seen
    }
  }

  focus(position) {
    if (!this.size) return;
    position = Math.min(Math.max(position, 0), this.size - 1);
    this.reveal(position);
    this.draw();
    this.tiles.get(position)?.firstElementChild.focus({ preventScroll: true });
  }

  reveal(position) {
    const head = document.querySelector("header").offsetHeight + 12;
    const top = this.top(position) + this.root.offsetTop;
    if (top < scrollY + head) scrollTo(0, top - head);
    else if (top + this.row > scrollY + innerHeight) scrollTo(0, top + this.row - innerHeight + 60);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !event.target.closest("li a")) return;
    const at = this.current;
    const rows = Math.max(1, Math.floor(innerHeight / this.row) - 1);
    const moves = {
      ArrowLeft: () => at - 1, ArrowRight: () => at + 1, Home: () => 0, End: () => this.size - 1,
      ArrowUp: () => this.beside(at, -1), ArrowDown: () => this.beside(at, 1),
      PageUp: () => Math.max(0, at - rows * this.columns), PageDown: () => at + rows * this.columns,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.focus(moves[event.key]());
  }

  // One row up or down, in the same column as far as there is one.
  beside(position, step) {
    const section = this.section(position);
    const at = position - section.first;
    const column = at % this.columns;
    const to = at + step * this.columns;
    if (to >= 0 && to < section.shown) return section.first + to;
    if (step > 0 && Math.floor(at / this.columns) < Math.floor((section.shown - 1) / this.columns)) return section.first + section.shown - 1;
    const next = this.sections[this.sections.indexOf(section) + step];
    if (!next?.shown) return position;
    if (step > 0) return next.first + Math.min(column, next.shown - 1);
    const row = Math.floor((next.shown - 1) / this.columns) * this.columns;
    return next.first + Math.min(row + column, next.shown - 1);
  }
}
