// Throughput and latency, as the database remembers them.

import { ask } from "/static/api.js";
import { Chart } from "/static/charts.js";
import { button, element, h, say, trying } from "/static/dom.js";
import { figure, moment, number, span } from "/static/words.js";

const WINDOWS = [["15m", "15 min"], ["1h", "1 h"], ["24h", "24 h"]];
const EVERY_MS = 10_000;
const COLUMNS = [
  ["At", (bucket) => moment(bucket.at)],
  ["Completed", (bucket) => number(bucket.completed)],
  ["Failed", (bucket) => number(bucket.failed)],
  ["Cancelled", (bucket) => number(bucket.cancelled)],
  ["Audio", (bucket) => span(bucket.audio_s)],
  ["Speed", (bucket) => figure(bucket.speed, "×", 1)],
  ["Begun p50", (bucket) => span(bucket.wait_p50_s)],
  ["Begun p95", (bucket) => span(bucket.wait_p95_s)],
  ["Done p50", (bucket) => span(bucket.total_p50_s)],
  ["Done p95", (bucket) => span(bucket.total_p95_s)],
];

const jobs = new Chart("Jobs that ended", [
  { label: "completed", ink: "accent", bars: true }, { label: "failed", ink: "bad", bars: true },
]);
const speed = new Chart("Speed, seconds of audio per second", [
  { label: "speed", ink: "accent", unit: "×", digits: 1 },
]);
const latency = new Chart("Seconds until begun, and until done", [
  { label: "begun p50", ink: "voice-2", unit: "s", digits: 1 },
  { label: "begun p95", ink: "voice-2", unit: "s", digits: 1, dash: true },
  { label: "done p50", ink: "accent", unit: "s", digits: 1 },
  { label: "done p95", ink: "accent", unit: "s", digits: 1, dash: true },
]);

let chosen = "15m";
let askedAt = -Infinity;
let counts = "";

export function start() {
  const buttons = WINDOWS.map(([name, text]) => button(text, () => {
    chosen = name;
    buttons.forEach((other) => other.setAttribute("aria-pressed", other.dataset.window === name));
    load();
  }, { "aria-pressed": name === chosen ? "true" : "false", data: { window: name } }));
  element("windows").append(...buttons);
  element("history-table").addEventListener("toggle", load);
}

/** Asked again when jobs have ended, and now and then because time goes on. */
export function showHistory({ queue }) {
  const now = JSON.stringify([queue.completed, queue.failed, queue.cancelled]);
  if (performance.now() - askedAt < EVERY_MS / (now === counts ? 1 : 4)) return;
  counts = now;
  load();
}

const load = trying(async () => {
  askedAt = performance.now();
  const window = chosen;
  const { buckets } = await ask(`/dashboard/history?window=${window}`);
  if (window === chosen) render(buckets);
});

function render(buckets) {
  const sum = (name) => buckets.reduce((total, bucket) => total + bucket[name], 0);
  const counts = { completed: sum("completed"), failed: sum("failed"), cancelled: sum("cancelled") };
  const none = Object.values(counts).every((count) => count === 0);
  const when = `the last ${WINDOWS.find(([name]) => name === chosen)[1]}`;
  element("history-charts").hidden = element("history-table").hidden = none;
  const ended = Object.entries(counts).map(([name, count]) => `${number(count)} ${name}`).join(", ");
  const text = none ? `No job has ended in ${when}.` : `In ${when}: ${ended}, ${span(sum("audio_s"))} of audio.`;
  say(element("history-said"), text);
  if (none) return;
  const charts = element("history-charts");
  if (charts.children.length === 0) charts.append(jobs.node, speed.node, latency.node);
  const times = buckets.map(({ at }) => new Date(at) / 1000);
  const column = (name) => buckets.map((bucket) => bucket[name]);
  const most = (name) => Math.max(...column(name).filter((value) => value !== null), 0);
  // Failed ones lie in front of all: the bar of both together is drawn first.
  const both = buckets.map((bucket) => bucket.completed + bucket.failed);
  jobs.show([times, both, column("failed")], `Jobs that ended in ${when}: ${ended}`);
  speed.show([times, column("speed")], `Seconds of audio per second in ${when}: at most ${number(most("speed"), 1)}`);
  const worst = `95 % had begun after ${span(most("wait_p95_s"))}, and were done after ${span(most("total_p95_s"))}`;
  const columns = ["wait_p50_s", "wait_p95_s", "total_p50_s", "total_p95_s"].map(column);
  latency.show([times, ...columns], `Seconds from sending in ${when}, at worst: ${worst}`);
  if (element("history-table").open) table(buckets);
}

function table(buckets) {
  const head = h("tr", {}, COLUMNS.map(([name]) => h("th", { scope: "col" }, name)));
  const row = (bucket) => h("tr", {}, COLUMNS.map(([, text]) => h("td", { class: "number" }, text(bucket))));
  const body = h("tbody", {}, buckets.toReversed().map(row));
  element("history-table").querySelector(".scroll").replaceChildren(h("table", {}, h("thead", {}, head), body));
}
