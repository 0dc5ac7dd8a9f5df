// One image, large, with what is known of it.

import * as words from "./words.js";

export class Detail {
  // go(step): the image before or after; act(what, hit): a button; close(): somebody wants to leave
  constructor(dialog, { go, act, close }) {
    Object.assign(this, { dialog, go, act });
    this.image = dialog.querySelector("img");
    this.gone = dialog.querySelector(".gone");
    dialog.addEventListener("cancel", (event) => (event.preventDefault(), close()));
    dialog.querySelector(".close").addEventListener("click", close);
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) return close(); // beside it
      const button = event.target.closest("button");
      if (button?.dataset.go) go(Number(button.dataset.go));
      if (button?.dataset.do) act(button.dataset.do, this.hit);
    });
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && !event.ctrlKey && !event.metaKey && !event.altKey) (event.preventDefault(), go(step));
    });
    let touched = null;
    dialog.addEventListener("touchstart", (event) => (touched = event.touches.length === 1 ? event.touches[0] : null), { passive: true });
    dialog.addEventListener("touchend", (event) => {
      const moved = touched ? event.changedTouches[0].clientX - touched.clientX : 0;
      const down = touched ? Math.abs(event.changedTouches[0].clientY - touched.clientY) : 0;
      touched = null;
      if (Math.abs(moved) > 60 && down < 40) go(moved > 0 ? -1 : 1);
    });
    this.image.addEventListener("load", () => this.image.classList.remove("rough"));
    this.image.addEventListener("error", () => this.missing());
  }

  get open() {
    return this.dialog.open;
  }

  show(hit, answer, { selected, first, last }) {
    const fresh = this.hit?.key !== hit.key || !this.open;
    this.hit = hit;
    if (fresh) {
      this.gone.hidden = true;
      this.image.hidden = false;
      this.image.alt = hit.name;
      this.image.width = hit.width || 1024; // its proportions, before it is there
      this.image.height = hit.height || 1024;
      this.image.src = `${hit.thumbnail}?size=1024`;
    }
    const find = (selector) => this.dialog.querySelector(selector);
    find("h2").textContent = hit.name;
    const close = words.closeness(hit, answer);
    const match = find(".match");
    match.hidden = !close;
    if (close) match.textContent = `${close.word[0].toUpperCase()}${close.word.slice(1)}: ${close.tip}`;
    find('[data-do="select"]').setAttribute("aria-pressed", selected);
    find('[data-go="-1"]').disabled = first;
    find('[data-go="1"]').disabled = last;
    if (fresh) this.facts(find("dl"), hit);
    if (!this.open) this.dialog.showModal();
  }

  facts(list, hit) {
    list.replaceChildren();
    const add = (name, value, copied) => {
      if (!value) return;
      list.appendChild(document.createElement("dt")).textContent = name;
      const there = list.appendChild(document.createElement("dd"));
      there.appendChild(document.createElement("bdi")).textContent = value;
      if (!copied) return;
      const button = there.appendChild(document.createElement("button"));
      button.type = "button";
      button.textContent = "Copy";
      button.setAttribute("aria-label", `Copy the ${copied}`);
      button.addEventListener("click", async () => {
        button.textContent = (await copy(value, there.firstChild)) ? "Copied" : "Press Ctrl+C";
        setTimeout(() => (button.textContent = "Copy"), 1500);
      });
    };
    add("Path", hit.path, "path");
    if (!hit.path) add("Folder", hit.folder);
    if (!hit.path) add("Key", hit.key, "key");
    add("Size", [hit.width && `${words.number(hit.width)} × ${words.number(hit.height)}`, words.size(hit.bytes)].filter(Boolean).join(", "));
    add("Date", words.date(hit.taken));
    add("Copies", hit.copies > 1 ? `${words.number(hit.copies)} files have these bytes` : "");
  }

  async missing() {
    this.image.hidden = true;
    this.gone.hidden = false;
    const key = this.hit.key;
    const answer = await fetch(this.image.src).catch(() => null);
    if (key !== this.hit.key) return;
    this.gone.textContent = answer?.status === 410 ? "The file is gone, or holds another image by now." : "This image cannot be shown.";
  }

  hide() {
    if (this.open) this.dialog.close();
    this.image.removeAttribute("src");
  }
}

// Without https the clipboard is closed to pages: the text is selected then, ready to be copied.
async function copy(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(shown);
    return false;
  }
}
