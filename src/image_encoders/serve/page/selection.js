// Images that were selected, whatever was searched for since, and the list of them as a file.

import * as words from "./words.js";

const COLUMNS = ["name", "folder", "path", "key", "score", "above", "width", "height", "bytes", "taken"];

export class Selection {
  constructor(bar, { changed, like }) {
    Object.assign(this, { bar, changed });
    this.hits = new Map(); // key -> hit
    const acts = {
      like: () => like([...this.hits.values()]),
      csv: () => save("images.csv", "text/csv", csv([...this.hits.values()])),
      json: () => save("images.json", "application/json", JSON.stringify([...this.hits.values()].map(plain), null, 2)),
      clear: () => this.clear(),
    };
    bar.addEventListener("click", (event) => acts[event.target.closest("button")?.dataset.do]?.());
  }

  has = (key) => this.hits.has(key);

  set(hits, on) {
    for (const hit of hits) on ? this.hits.set(hit.key, hit) : this.hits.delete(hit.key);
    this.tell();
  }

  clear() {
    this.hits.clear();
    this.tell();
  }

  tell() {
    this.bar.hidden = !this.hits.size;
    this.bar.querySelector("p").textContent = `${words.number(this.hits.size)} selected`;
    this.changed();
  }
}

const plain = (hit) => Object.fromEntries(COLUMNS.map((name) => [name, hit[name] ?? null]));

export function csv(hits) {
  const cell = (value) => {
    let text = String(value ?? "");
    // A spreadsheet would run such a name as a formula.
    if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
    return /[",\r\n']/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [COLUMNS, ...hits.map((hit) => COLUMNS.map((name) => hit[name]))].map((row) => row.map(cell).join(",") + "\r\n").join("");
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
