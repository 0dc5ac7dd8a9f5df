// The page that was asked for is where the form leads to, and only one of this service's.
const asked = new URLSearchParams(location.search);
const next = new URL(asked.get("next") || "search", location.href);
if (next.origin === location.origin) document.getElementById("next").value = next.pathname + next.search + next.hash;
document.getElementById("wrong").hidden = !asked.has("failed");
