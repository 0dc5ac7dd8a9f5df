// Selected images, whatever is searched for since, and their list as a file.

import { element, find } from "./dom.js";
import * as words from "./words.js";

const COLUMNS = ["name", "folder", "path", "key", "score", "above", "width", "height", "bytes", "taken"];

export class Selection {
	constructor(changed) {
		Object.assign(this, { changed, hits: new Map() }); // by key
		const acts = {
			csv: () => save("images.csv", "text/csv", csv(this.rows)),
			json: () => save("images.json", "application/json", JSON.stringify(this.rows, null, 2)),
			clear: this.clear,
		};
		for (const button of find("selection").querySelectorAll("button")) button.onclick = acts[button.dataset.act];
	}

	get rows() {
		return [...this.hits.values()].map((hit) => Object.fromEntries(COLUMNS.map((name) => [name, hit[name] ?? null])));
	}

	clear = () => this.set([...this.hits.values()], false);

	set(hits, on) {
		for (const hit of hits) on ? this.hits.set(hit.key, hit) : this.hits.delete(hit.key);
		find("selection").hidden = !this.hits.size;
		find("selected").textContent = `${words.number(this.hits.size)} selected`;
		this.changed();
	}
}

function csv(rows) {
	const cell = (value) => {
		// A spreadsheet would run such a name as a formula.
		const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? "");
		return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
	};
	return [COLUMNS, ...rows.map(Object.values)].map((row) => `${row.map(cell).join()}\r\n`).join("");
}

function save(name, type, text) {
	const link = element("a");
	link.href = URL.createObjectURL(new Blob([text], { type }));
	link.download = name;
	link.click();
	setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
