// Asking the service. A refusal is an error that says why; its `wait`: seconds until the next try.

import { sentence } from "./words.js";

const failed = (message, wait) => Object.assign(new Error(message), { wait });

export async function ask(path, options) {
	let answer, body;
	try {
		answer = await fetch(path, { headers: { Accept: "application/json" }, ...options });
		body = await answer.json().catch((error) => {
			if (error.name === "AbortError") throw error;
		});
	} catch (error) {
		if (error.name === "AbortError") throw error;
		throw failed("The service does not answer. Is it still running? This page tries again by itself.", 3);
	}
	if (answer.status === 401) {
		location.assign(`login?next=${encodeURIComponent(location.pathname + location.search + location.hash)}`);
		return new Promise(() => {}); // the page is being left
	}
	if (answer.ok && body) return body;
	const said = body?.error?.message || (typeof body?.detail === "string" && body.detail) || `The service answered ${answer.status}`;
	const later = [429, 502, 503, 504].includes(answer.status);
	throw failed(sentence(said), later && Math.min(Math.max(+answer.headers.get("Retry-After") || 2, 1), 30));
}
