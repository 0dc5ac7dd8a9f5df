// Asking the service; what it refuses is an error that says why and what to do next.

export class Refused extends Error {
  constructor(message, status, wait) {
    super(message);
    Object.assign(this, { status, wait }); // wait: seconds until it is worth trying again, null where it is not
  }
}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { headers: { Accept: "application/json" }, ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service does not answer. See whether it is still running; this page tries again by itself.", 0, 3);
  }
  if (answer.status === 401) {
    location.assign(`login?next=${encodeURIComponent(location.pathname + location.search + location.hash)}`);
    return new Promise(() => {}); // the page is being left
  }
  const body = await answer.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (answer.ok && body) return body;
  const said = body?.error?.message || (typeof body?.detail === "string" && body.detail) || `The service answered ${answer.status}.`;
  const later = [429, 502, 503, 504].includes(answer.status);
  throw new Refused(sentence(said), answer.status, later ? Math.min(Math.max(Number(answer.headers.get("Retry-After")) || 2, 1), 30) : null);
}

const sentence = (said) => (/[.!?…]$/.test(said) ? said : `${said}.`);
