"use strict";
// Sends what a form of the page holds, and shows the answer, as text.
for (const form of document.querySelectorAll("form[data-path]")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const area = form.querySelector("textarea");
    const output = form.querySelector("output");
    const options = { method: form.dataset.method };
    if (area) {
      options.body = area.value;
      options.headers = { "Content-Type": "application/json" };
    }
    output.textContent = "…";
    const began = performance.now();
    try {
      const answer = await fetch(form.dataset.path, options);
      const text = await answer.text();
      const took = Math.round(performance.now() - began);
      const shown = text.length > 4000 ? `${text.slice(0, 4000)} … (${text.length} characters)` : text;
      output.textContent = `${answer.status} in ${took} ms\n${shown}`;
    } catch (error) {
      output.textContent = String(error);
    }
  });
}
