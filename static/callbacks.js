// How callbacks do: counts, and those that are late or were given up.

import { ask, post } from "/static/api.js";
import { aside, button, chip, element, h, line, mark, problem, rows, say, show, tight, trying } from "/static/dom.js";
import { figures } from "/static/header.js";
import { count, given, moment, number, phrase, short } from "/static/words.js";

const NAMES = ["pending", "retrying", "delivered", "dead"];
const EVERY_MS = 3000;
let counts = "";
let timer = 0;

export function showCallbacks({ callbacks }) {
  if (callbacks) figures(element("callback-figures"), NAMES.map((name) => [name, number(callbacks[name])]));
  const now = JSON.stringify(callbacks);
  if (!callbacks || now === counts) return;
  const first = counts === "";
  counts = now;
  clearTimeout(timer);
  timer = setTimeout(load, first ? 0 : EVERY_MS);
}

const load = trying(async () => {
  const { callbacks } = await ask("/dashboard/callbacks");
  rows(element("callback-rows"), callbacks, (callback) => callback.job_id, row);
});

function row({ job_id: id }) {
  const state = chip(), said = aside(), error = problem();
  const again = button("Send again", trying(async () => {
    await post(`/jobs/${id}/callbacks/redeliver`);
    await load();
  }), { "aria-label": `Send again: callback of ${short(id)}` });
  const job = h("a", { href: `#/jobs/${id}`, class: "code" }, short(id));
  const node = h("li", {}, line(job, state), tight(said, again), error);
  return { node, fill({ state: name, host, attempts, next_attempt_at: next, last_error: last }) {
    mark(state, name === "pending" && attempts > 0 ? "retrying" : name);
    say(said, phrase(host, count(attempts, "attempt"), given(next, (at) => `next at ${moment(at)}`)));
    show(error, last);
  } };
}
