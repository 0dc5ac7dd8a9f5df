// The document. What comes from elsewhere becomes text only.

export const find = (id) => document.getElementById(id);
export const hide = (id, hidden) => (find(id).hidden = hidden);
export const copy = (id) => find(id).content.firstElementChild.cloneNode(true);
export const held = (event) => event.ctrlKey || event.metaKey || event.altKey;
export function element(tag, ...children) {
	const made = document.createElement(tag);
	made.append(...children);
	return made;
}
