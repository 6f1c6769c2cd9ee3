// Elements from text: nothing here, or anywhere in the page, makes markup of what the daemon says.

import { tone } from "/static/words.js";

export const element = (id) => document.getElementById(id);

/** `on` in `properties` holds listeners, `data` the dataset; the others are attributes, but for null and false. */
export function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") Object.entries(value).forEach(([event, heard]) => made.addEventListener(event, heard));
    else if (name === "data") Object.assign(made.dataset, value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null));
  return made;
}

// The few that the page is made of.
export const line = (...children) => h("div", { class: "line" }, ...children);
export const tight = (...children) => h("div", { class: "line tight" }, ...children);
export const quiet = (...children) => h("span", { class: "quiet" }, ...children);
export const aside = (...children) => h("p", { class: "quiet" }, ...children);
export const problem = () => h("p", { class: "bad", hidden: true });
export const progressOf = (what) => h("progress", { max: 100, "aria-label": `Progress of ${what}` });

export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Hidden while there is nothing to say. */
export function show(target, text) {
  say(target, text ?? "");
  target.hidden = !text;
}

export const chip = (state = "") => mark(h("span", { class: "chip" }), state);

export function mark(target, state, text = state) {
  say(target, text);
  if (target.dataset.tone !== tone(state)) target.dataset.tone = tone(state);
  return target;
}

export function bar(target, value, max) {
  target.hidden = value === null;
  if (value === null) return;
  target.max = max || 1;
  target.value = value;
}

export function button(text, does, properties = {}) {
  return h("button", { type: "button", ...properties, on: { click: does } }, text);
}

const shown = new WeakMap();

/** One child of `parent` per item: made once per key by `make`, which gives the function that fills it each time. */
export function rows(parent, items, key, make) {
  const before = shown.get(parent) ?? new Map();
  const now = new Map(items.map((item) => [key(item), null]));
  before.forEach((row, name) => now.has(name) || row.node.remove()); // first: what stays keeps its place, and the focus
  let place = parent.firstElementChild;
  for (const item of items) {
    const row = before.get(key(item)) ?? make(item);
    now.set(key(item), row);
    if (row.node === place) place = place.nextElementSibling;
    else parent.insertBefore(row.node, place);
    row.fill(item);
  }
  shown.set(parent, now);
}

export function facts(pairs) {
  const fact = ([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  return h("dl", { class: "facts" }, pairs.map(fact));
}

export function notice(text) {
  show(element("notice-text"), text);
  element("notice").hidden = !text;
}

/** What a button does, with what went wrong told above the page until it goes well. */
export function trying(does) {
  let told = null;
  return async (event) => {
    try {
      await does(event);
      if (told !== null && element("notice-text").textContent === told) notice("");
      told = null;
    } catch (error) {
      if (error.name === "AbortError") return;
      told = error.message;
      notice(told);
    }
  };
}

/** Asks before something that cannot be taken back; resolves to whether to go on. */
export function sure(question, explanation, go) {
  const dialog = element("sure");
  say(element("sure-title"), question);
  say(element("sure-text"), explanation);
  say(element("sure-go"), go);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((answer) => {
    dialog.addEventListener("close", () => answer(dialog.returnValue === "go"), { once: true });
  });
}
