// What the service is doing: its collection, a running embedding, failures, throughput and latency.

import { ask } from "./service.js";
import * as words from "./words.js";

const OFTEN = 1000; // ms, while it is looked at or something runs
const SELDOM = 10000;
const KEPT = 60; // samples of a curve
const find = (id) => document.getElementById(id);

const FIGURES = [
  ["requests_per_second", "Requests", "per second"],
  ["images_per_second", "Images", "per second"],
  ["p50_ms", "Median latency", "ms"],
  ["p99_ms", "Latency, 99 of 100", "ms"],
  ["waiting", "Waiting", "items"],
];

export class Status {
  constructor(changed) {
    this.changed = changed;
    this.now = null;
    this.curves = new Map(FIGURES.map(([name]) => [name, []]));
    this.watched = false; // whether the view of figures is open
    document.addEventListener("visibilitychange", () => this.poll());
    this.poll();
  }

  watch(on) {
    if (this.watched === on) return;
    this.watched = on;
    this.poll();
  }

  async poll() {
    clearTimeout(this.next);
    if (document.hidden || this.asking) return;
    this.asking = true;
    try {
      this.now = await ask("status.json");
      this.draw();
      this.changed(this.now);
    } catch (error) {
      find("service-said").textContent = error.message;
    }
    this.asking = false;
    const busy = this.watched || ["looking", "embedding"].includes(this.now?.run?.state);
    clearTimeout(this.next);
    this.next = setTimeout(() => this.poll(), busy ? OFTEN : SELDOM);
  }

  draw() {
    const { collection, run, service, model } = this.now;
    const failed = collection?.failures ?? 0;
    find("to-failures").hidden = !failed;
    find("to-failures").textContent = `${words.number(failed)} failed`;
    find("service-said").textContent = model;
    this.run(run);
    const left = run?.total == null ? null : Math.max(0, run.total - run.done - run.failed);
    list(find("counts"), [
      ["Embedded", collection ? words.number(collection.images) : "–"],
      ["Failed", words.number(failed)],
      ["Not yet looked at", left == null ? (run?.state === "looking" ? "counting" : "–") : words.number(left)],
    ]);
    for (const [name] of FIGURES) {
      const curve = this.curves.get(name);
      curve.push(service?.[name] ?? 0);
      if (curve.length > KEPT) curve.shift();
    }
    if (this.watched) {
      list(find("figures"), FIGURES.map(([name, title, unit]) => [title, words.figure(service?.[name]), unit, this.curves.get(name)]));
    }
  }

  run(run) {
    const shown = run && run.state !== "following";
    find("run").hidden = !shown;
    if (!shown) return;
    const bar = find("run").querySelector("progress");
    const failed = run.failed ? `, ${words.number(run.failed)} failed` : "";
    const ahead = run.eta == null ? "" : `, about ${words.span(run.eta)} left`;
    const said = {
      looking: `Looking for images${run.total ? `: ${words.number(run.total)} so far` : ""}`,
      embedding: `Embedding ${words.number(run.done)}${run.total == null ? "" : ` of ${words.number(run.total)}`} images${run.rate ? `, ${words.figure(run.rate)} a second` : ""}${failed}${ahead}`,
      paused: `Paused at ${words.number(run.done)} images`,
      failed: "Embedding has ended early",
    };
    find("run").querySelector("p").textContent = [said[run.state] ?? run.state, run.message].filter(Boolean).join(". ");
    bar.hidden = run.state === "failed";
    if (run.total && run.state !== "looking") {
      bar.max = run.total;
      bar.value = run.done + run.failed;
    } else bar.removeAttribute("value");
  }
}

function list(element, rows) {
  element.replaceChildren(...rows.map(([name, value, unit, curve]) => {
    const row = document.createElement("div");
    row.appendChild(document.createElement("dt")).textContent = name;
    const there = row.appendChild(document.createElement("dd"));
    there.textContent = value;
    if (unit) there.appendChild(document.createElement("small")).textContent = ` ${unit}`;
    if (curve) row.appendChild(document.createElement("dd")).append(line(curve));
    return row;
  }));
}

function line(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const drawn = svg.appendChild(document.createElementNS(svg.namespaceURI, "polyline"));
  svg.setAttribute("viewBox", `0 -2 ${KEPT - 1} 34`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...values, 1e-9);
  const start = KEPT - values.length;
  drawn.setAttribute("points", values.map((value, at) => `${start + at},${(30 - (30 * value) / most).toFixed(1)}`).join(" "));
  return svg;
}

// The list of failures, a page at a time.
export class Failures {
  constructor() {
    this.next = null;
    find("failures-more").addEventListener("click", () => this.load(this.next));
  }

  async load(offset = 0) {
    const rows = document.querySelector("#failures tbody");
    const said = find("failures-said");
    let answer;
    try {
      answer = await ask(`failures.json?offset=${offset}`);
    } catch (error) {
      said.textContent = error.message;
      return;
    }
    if (!offset) rows.replaceChildren();
    said.textContent = answer.count
      ? `${words.plural(answer.count, "file")} could not be embedded, so that no search finds ${answer.count === 1 ? "it" : "them"}. The next run tries those that have changed; --retry-failed tries all.`
      : "Every file that was looked at is embedded.";
    document.querySelector("#failures .scroll").hidden = !answer.count;
    for (const { name, path, stage, code, message, when } of answer.failures) {
      const row = rows.insertRow();
      const image = row.appendChild(document.createElement("th"));
      image.scope = "row";
      image.appendChild(document.createElement("bdi")).textContent = name;
      if (path) image.title = path;
      const reason = row.insertCell();
      reason.textContent = message;
      reason.appendChild(document.createElement("small")).textContent = [stage, code].filter(Boolean).join(" · ");
      row.insertCell().textContent = words.date(when);
    }
    this.next = answer.next;
    find("failures-more").hidden = answer.next == null;
  }
}
