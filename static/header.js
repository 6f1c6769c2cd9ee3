// The top of the page: how the daemon is, how that is known, and what the tab says of it.

import { accessKey, giveKey } from "/static/api.js";
import { element, h, mark, notice, rows, say, show } from "/static/dom.js";
import { count, figure, given, number, phrase, span, tone } from "/static/words.js";

const THEMES = ["auto", "light", "dark"];
const STALE_S = 3;

const FIGURES = [
  ["queued", (queue) => number(queue.queued)],
  ["running", (queue) => number(queue.running)],
  ["oldest waits", (queue) => (queue.queued ? span(queue.oldest_queued_s) : "–")],
  ["expected wait", (queue) => span(queue.estimated_wait_s)],
  ["completed", (queue) => number(queue.completed)],
  ["failed", (queue) => number(queue.failed)],
  ["cancelled", (queue) => number(queue.cancelled)],
];

export function figures(target, entries) {
  rows(target, entries, ([name]) => name, ([name]) => {
    const value = h("dd");
    return { node: h("div", {}, h("dt", {}, name), value), fill: ([, text]) => say(value, text) };
  });
}

export function showState(state) {
  const { health, queue, database } = state;
  mark(element("health"), health.status);
  if (health.reason) show(element("reason"), health.reason);
  else concern(concerns(state));
  const latency = database?.answers ? figure(database.latency_ms, "ms", 1) : "does not answer";
  const answer = given(database, () => `database ${latency}`);
  say(element("about"), phrase(`version ${state.version}`, `up ${span(state.uptime_s)}`, answer));
  figures(element("figures"), FIGURES.map(([name, text]) => [name, text(queue)]));
  tab(health.status, queue);
}

/** What is wrong while the daemon is ready all the same: words, and the section where it is seen. */
function concerns({ workers, models }) {
  const found = ["quarantined", "drained"].map((name) => [name, workers.filter(({ state }) => state === name).length])
    .filter(([, off]) => off > 0).map(([name, off]) => [`${count(off, "worker")} ${name}`, "workers"]);
  const failed = models.filter(({ enabled, state }) => enabled && state === "failed");
  return [...found, ...failed.map(({ name }) => [`${name} cannot be used`, "models"])];
}

function concern(found) {
  const text = found.map(([words]) => words).join(" · "), target = element("reason");
  target.hidden = !text;
  if (target.textContent === text) return; // a link may have the focus
  const links = found.map(([words, section]) => h("a", { href: `/#${section}` }, words));
  target.replaceChildren(...links.flatMap((link) => [" · ", link]).slice(1));
}

function tab(status, queue) {
  const ready = tone(status) === "good";
  const doing = queue.running + queue.queued > 0 ? `(${queue.running + queue.queued}) ` : "";
  document.title = ready ? `${doing}gpu_daemon` : `${status} · gpu_daemon`;
  const kind = { wait: "-wait", bad: "-bad" }[tone(status)] ?? (queue.running ? "-busy" : "");
  const icon = `/static/favicon${kind}.svg`;
  if (element("favicon").getAttribute("href") !== icon) element("favicon").setAttribute("href", icon);
}

export function showConnection(live) {
  const { status, reason, age_s } = live;
  const stale = status !== "live" && status !== "polling" && age_s !== null && age_s > STALE_S;
  mark(element("connection"), status, status === "polling" ? "live, by asking" : status);
  const old = stale ? `What you see is ${span(Math.floor(age_s))} old.` : "";
  const lines = {
    reconnecting: `Reconnecting: ${reason}. ${old}`,
    paused: `Paused. ${old}`,
  };
  show(element("banner"), lines[status] ?? (stale ? old : ""));
  if (status === "reconnecting" && stale) {
    mark(element("health"), "unknown");
    document.title = "no answer · gpu_daemon";
  }
  element("key").hidden = accessKey() !== null || status !== "key needed";
}

export function start(live) {
  element("pause").addEventListener("click", () => {
    live.pause(!live.paused);
    element("pause").setAttribute("aria-pressed", live.paused);
    say(element("pause"), live.paused ? "Go on" : "Pause");
  });
  let theme = localStorage.getItem("theme") ?? "auto";
  const named = () => say(element("theme"), `Theme: ${theme}`);
  element("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    if (theme === "auto") {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem("theme");
    } else {
      document.documentElement.dataset.theme = theme;
      localStorage.setItem("theme", theme);
    }
    named();
    dispatchEvent(new Event("theme"));
  });
  named();
  element("notice-close").addEventListener("click", () => notice(""));
  element("key").addEventListener("submit", (event) => {
    event.preventDefault();
    giveKey(element("key-value").value);
    element("key-value").value = "";
  });
}
