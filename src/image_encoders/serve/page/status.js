// What the service is doing, and what has failed.

import { element, find, hide } from "./dom.js";
import { ask } from "./service.js";
import * as words from "./words.js";

const [OFTEN, SELDOM] = [1000, 10000]; // ms
const FIGURES = {
	requests_per_second: ["Requests", "/s"], images_per_second: ["Images", "/s"],
	p50_ms: ["Median latency", "ms"], p99_ms: ["99 of 100 within", "ms"], waiting: ["Waiting", "items"],
};
export const busy = (status) => ["looking", "embedding"].includes(status?.run?.state);

export class Status {
	constructor(changed) {
		Object.assign(this, { changed, watched: false, now: null });
		document.addEventListener("visibilitychange", () => this.poll());
		this.poll();
	}

	watch(on) {
		if (this.watched !== on) this.poll((this.watched = on));
	}

	async poll() {
		clearTimeout(this.next);
		if (document.hidden || this.asking) return;
		this.asking = true;
		try {
			this.now = await ask("status.json");
			this.draw(this.now);
			this.changed(this.now);
		} catch (error) {
			find("service-said").textContent = error.message;
		}
		this.asking = false;
		this.next = setTimeout(() => this.poll(), this.watched || busy(this.now) ? OFTEN : SELDOM);
	}

	draw({ collection, run, service, model }) {
		const failures = collection?.failures ?? 0;
		hide("to-failures", !failures);
		find("to-failures").textContent = `${words.number(failures)} failed`;
		find("service-said").textContent = model;
		const left = run?.total == null ? "not counted" : words.number(Math.max(0, run.total - run.done - run.failed));
		list("counts", [["Embedded", collection ? words.number(collection.images) : "–"], ["Failed", words.number(failures)], run && ["Not yet looked at", left]].filter(Boolean));
		list("figures", Object.entries(FIGURES).map(([name, [title, unit]]) => [title, words.figure(service[name]), unit]));
		this.run(run);
	}

	run(run) {
		const idle = !run || (run.state === "following" && !run.message);
		hide("run", idle);
		if (idle) return;
		const { state, total, done, failed, rate, eta, message } = run;
		const said = {
			looking: `Looking for images${total ? `: ${words.number(total)} so far` : ""}`,
			embedding: [
				`Embedding ${words.number(done)}${total == null ? "" : ` of ${words.number(total)}`} images`, rate && `${words.figure(rate)} a second`,
				failed && `${words.number(failed)} failed`, eta != null && `about ${words.span(eta)} left`,
			].filter(Boolean).join(", "),
			paused: "Paused",
			failed: "Embedding has ended early",
		}[state];
		const [text, bar] = find("run").children;
		text.textContent = words.sentence([said, message].filter(Boolean).join(": "));
		bar.hidden = !busy({ run });
		bar.max = total || 1;
		if (total && state !== "looking") bar.value = done + failed;
		else bar.removeAttribute("value");
	}
}

function list(id, rows) {
	const made = ([name, value, unit = ""]) => element("div", element("dt", name), element("dd", value, " ", element("small", unit)));
	find(id).replaceChildren(...rows.map(made));
}

// The list of failures, a page at a time.
export async function showFailures(offset = 0) {
	const more = find("failures-more");
	try {
		const { count, failures, next } = await ask(`failures.json?offset=${offset}`);
		find("failures-said").textContent = count
			? `No search finds ${count === 1 ? "this file" : `these ${words.number(count)} files`}. “encode --retry-failed” tries again.`
			: "Every file that was looked at is embedded.";
		const rows = failures.map(({ name, path, stage, code, message, when }) => {
			const image = element("th", element("bdi", words.name(name)));
			image.scope = "row";
			image.title = path ?? "";
			return element("tr", image, element("td", message, element("small", `${stage} · ${code}`)), element("td", words.date(when)));
		});
		document.querySelector("tbody")[offset ? "append" : "replaceChildren"](...rows);
		document.querySelector(".scroll").hidden = !count;
		more.hidden = next == null;
		more.onclick = () => showFailures(next);
	} catch (error) {
		find("failures-said").textContent = error.message;
	}
}
