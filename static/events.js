// What happened: the daemon's last events, newest first.

import { element, h, rows } from "/static/dom.js";
import { moment, tone } from "/static/words.js";

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
    return { node: h("li", { title: kind }, time, word, h("span", {}, text)), fill() {} };
  });
}
