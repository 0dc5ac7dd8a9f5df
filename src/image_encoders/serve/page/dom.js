// The document, in fewer letters. What comes from elsewhere is put into it as text only.

export const find = (id) => document.getElementById(id);

export function element(tag, ...children) {
	const made = document.createElement(tag);
	made.append(...children);
	return made;
}

export function hide(id, hidden) {
	find(id).hidden = hidden;
}
