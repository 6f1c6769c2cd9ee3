// What happened: the daemon's last events, newest first.

import { element, h, rows } from "/static/dom.js";
import { moment, short, tone } from "/static/words.js";

const JOB_ID = /([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/;
let events = [];

export function start() {
  element("only-bad").addEventListener("change", render);
}

export function showEvents(state) {
  events = state.events ?? [];
  render();
}

function render() {
  const shown = element("only-bad").checked ? events.filter(({ level }) => level !== "info") : events;
  element("no-events").hidden = shown.length > 0;
  rows(element("event-rows"), shown, ({ seq }) => seq, ({ at, level, kind, text }) => {
    const word = h("span", { class: "level", data: { tone: tone(level) } }, level);
    const time = h("time", { datetime: at }, moment(at));
    return { node: h("li", { title: kind }, time, word, h("span", {}, linked(text))), fill() {} };
  });
}

/** With each job's id as a link to all about it. */
function linked(text) {
  const link = (id) => h("a", { href: `#/jobs/${id}`, class: "code" }, short(id));
  return text.split(JOB_ID).map((part, place) => (place % 2 ? link(part) : part));
}
