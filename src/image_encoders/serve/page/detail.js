// One image, large, with what is known of it.

import { element, find, held } from "./dom.js";
import * as words from "./words.js";

export class Detail {
	// go(step): to the image before or after; act(what, hit): a button; close(): somebody wants to leave
	constructor({ go, act, close }) {
		this.dialog = find("detail");
		[this.image, this.gone] = this.dialog.querySelectorAll(".view > *");
		this.image.onerror = () => (this.gone.hidden = !(this.image.hidden = true));
		this.dialog.oncancel = (event) => event.preventDefault(close());
		this.dialog.onclick = ({ target }) => {
			const { step, act: what } = target.closest("button")?.dataset ?? {};
			if (what === "close") close();
			else if (step) go(+step);
			else if (what) act(what, this.hit);
		};
		this.dialog.onkeydown = (event) => {
			const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
			if (step && !held(event)) go(step);
		};
		let from;
		this.dialog.ontouchstart = ({ touches }) => (from = touches[0].clientX);
		this.dialog.ontouchend = ({ changedTouches: [to] }) => Math.abs(to.clientX - from) > 70 && go(to.clientX > from ? -1 : 1);
	}

	show(hit, answer, { selected, first, last }) {
		const [name, match] = this.dialog.querySelectorAll("h2, .match");
		if (this.hit?.key !== hit.key || !this.dialog.open) {
			this.hit = hit;
			this.gone.hidden = true;
			name.textContent = this.image.alt = words.name(hit.name);
			// Its proportions, before it is there.
			Object.assign(this.image, { hidden: false, width: hit.width || 1024, height: hit.height || 1024, src: `${hit.thumbnail}?size=1024` });
			this.facts();
		}
		const close = answer && words.closeness(hit, answer);
		match.textContent = close ? `${close.word}: ${close.tip}` : "";
		this.dialog.querySelector("[data-act=select]").setAttribute("aria-pressed", selected);
		const [before, after] = this.dialog.querySelectorAll("[data-step]");
		before.disabled = first;
		after.disabled = last;
		if (!this.dialog.open) this.dialog.showModal();
	}

	facts() {
		const { path, folder, key, width, height, bytes, taken, copies } = this.hit;
		const facts = {
			Path: path, Folder: path ? "" : folder, Key: path ? "" : key,
			Size: `${words.number(width)} × ${words.number(height)}, ${words.size(bytes)}`,
			Date: words.date(taken),
			Copies: copies && `${words.plural(copies, "other file")} of the same bytes`,
		};
		const list = this.dialog.querySelector("dl");
		list.replaceChildren();
		for (const [title, said] of Object.entries(facts)) {
			if (!said) continue;
			const text = element("bdi", words.name(said));
			const value = element("dd", text);
			list.append(element("dt", title), value);
			if (title !== "Path" && title !== "Key") continue;
			const button = value.appendChild(element("button", "Copy"));
			button.ariaLabel = `Copy the ${title.toLowerCase()}`;
			button.onclick = async () => {
				try {
					await navigator.clipboard.writeText(said);
					button.textContent = "Copied";
				} catch { // without https the clipboard is closed to pages
					getSelection().selectAllChildren(text);
					button.textContent = "Press Ctrl+C";
				}
			};
		}
	}
}
