// The few things done to the document, each only where something is different from before. What
// users wrote (keys, errors, logs) goes in by textContent alone.

export const at = id => document.getElementById(id);

/** Set an element's text, if it is another one. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function hint(element, text) {
  if (element.title !== text) element.title = text;
}

export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

export function mark(element, name, value) {
  if (element.dataset[name] !== value) element.dataset[name] = value;
}

export function attribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** How far a bar goes, 0 to 1: a property that the style sheet paints by. */
export function fill(element, name, share) {
  const value = Math.max(0, Math.min(1, share || 0)).toFixed(3);
  if (element.style.getPropertyValue(name) !== value) element.style.setProperty(name, value);
}

/** An element with classes, text and children: make("p.sum", "text", child, ..). */
export function make(kind, ...inside) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  element.append(...inside);
  return element;
}

/**
 * Rows that are kept by key: each is built once, updated in place, and moved only if the order
 * changed, so that focus, selection and what is open survive every update.
 */
export class Rows {
  constructor(parent, build, update) {
    this.parent = parent;
    this.build = build;
    this.update = update;
    this.byKey = new Map();
  }

  set(items, keyOf) {
    const wanted = new Map();
    for (const item of items) wanted.set(keyOf(item), item);
    for (const [key, row] of this.byKey) {
      if (!wanted.has(key)) {
        row.element.remove();
        this.byKey.delete(key);
      }
    }
    let place = this.parent.firstElementChild;
    for (const [key, item] of wanted) {
      let row = this.byKey.get(key);
      if (!row) {
        row = this.build(item);
        this.byKey.set(key, row);
      }
      if (place === row.element) place = place.nextElementSibling;
      else this.parent.insertBefore(row.element, place);
      this.update(row, item);
    }
  }
}
