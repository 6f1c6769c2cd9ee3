// Throughput and latency, as the database remembers them.

import { ask } from "/static/api.js";
import { Chart } from "/static/charts.js";
import { button, element, h, say, trying } from "/static/dom.js";
import { figure, moment, number, span } from "/static/words.js";

const WINDOWS = [["15m", "15 min"], ["1h", "1 h"], ["24h", "24 h"]];
const EVERY_MS = 10_000;
const COLUMNS = [["At", (b) => moment(b.at)], ["Completed", (b) => number(b.completed)], ["Failed", (b) => number(b.failed)], ["Cancelled", (b) => number(b.cancelled)],
  ["Audio", (b) => span(b.audio_s)], ["Speed", (b) => figure(b.speed, "×", 1)], ["Wait p50", (b) => span(b.wait_p50_s)], ["Wait p95", (b) => span(b.wait_p95_s)],
  ["Total p50", (b) => span(b.total_p50_s)], ["Total p95", (b) => span(b.total_p95_s)]];

const jobs = new Chart("Jobs that ended", [
  { label: "completed", ink: "accent", bars: true }, { label: "failed", ink: "bad", bars: true },
]);
const speed = new Chart("Speed, seconds of audio per second", [{ label: "speed", ink: "accent", unit: "×", digits: 1 }]);
const latency = new Chart("Seconds until begun, and until done", [
  { label: "begun p50", ink: "voice-2", unit: "s", digits: 1 }, { label: "begun p95", ink: "voice-2", dash: true, unit: "s", digits: 1 },
  { label: "done p50", ink: "accent", unit: "s", digits: 1 }, { label: "done p95", ink: "accent", dash: true, unit: "s", digits: 1 },
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
  const sum = (name) => buckets.reduce((total, bucket) => total + (bucket[name] ?? 0), 0);
  const ended = sum("completed") + sum("failed") + sum("cancelled");
  element("history-charts").hidden = element("history-table").hidden = ended === 0;
  const text = WINDOWS.find(([name]) => name === chosen)[1];
  if (ended === 0) {
    say(element("history-said"), `No job has ended in the last ${text}.`);
    return;
  }
  const said = `${number(sum("completed"))} completed, ${number(sum("failed"))} failed, ${number(sum("cancelled"))} cancelled`;
  say(element("history-said"), `The last ${text}: ${said}, ${span(sum("audio_s"))} of audio.`);
  const charts = element("history-charts");
  if (charts.children.length === 0) charts.append(jobs.node, speed.node, latency.node);
  const times = buckets.map(({ at }) => new Date(at) / 1000);
  const column = (name) => buckets.map((bucket) => bucket[name] ?? null);
  const most = (name) => Math.max(...column(name).filter((value) => value !== null), 0);
  // Failed ones lie in front of all: the bar of both together is drawn first.
  jobs.show([times, buckets.map((bucket) => bucket.completed + bucket.failed), column("failed")], `Jobs of the last ${text}: ${said}`);
  speed.show([times, column("speed")], `Seconds of audio per second in the last ${text}: at most ${number(most("speed"), 1)}`);
  latency.show([times, ...["wait_p50_s", "wait_p95_s", "total_p50_s", "total_p95_s"].map(column)],
    `Seconds from sending in the last ${text}: 95 % begun within ${span(most("wait_p95_s"))}, done within ${span(most("total_p95_s"))}, in the worst of times`);
  if (element("history-table").open) table(buckets);
}

function table(buckets) {
  const head = h("tr", {}, COLUMNS.map(([name]) => h("th", { scope: "col" }, name)));
  const body = buckets.toReversed().map((bucket) => h("tr", {}, COLUMNS.map(([, text]) => h("td", { class: "number" }, text(bucket)))));
  element("history-table").querySelector(".scroll").replaceChildren(h("table", {}, h("thead", {}, head), h("tbody", {}, body)));
}
