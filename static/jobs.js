// The table of jobs: asked for a page at a time when the queue has changed; what runs moves with the live state.

import { ask, post } from "/static/api.js";
import { bar, button, chip, element, h, mark, rows, say, sure, trying } from "/static/dom.js";
import { clock, known, moment, short, span } from "/static/words.js";

const PAGE = 20;
const EVERY_MS = 2000;
const ENDED = new Set(["completed", "failed", "cancelled"]);

const pages = [null]; // the cursor of each page up to the one that is shown
let next = null;
let jobs = [];
let running = new Map();
let queue = "";
let askedAt = -Infinity;
let timer = 0;
let asking = false;

export async function cancel(job) {
  if (await sure("Cancel this job?", `${job.file_name} (${short(job.job_id)}) is ${job.status}. A job that was cancelled does not come back.`, "Cancel the job")) {
    await post(`/jobs/${job.job_id}/cancel`);
  }
}

export function start() {
  for (const name of ["by-status", "by-model"]) element(name).addEventListener("change", () => turn([null]));
  element("filters").addEventListener("submit", (event) => event.preventDefault());
  element("newer").addEventListener("click", () => turn(pages.slice(0, -1)));
  element("older").addEventListener("click", () => turn([...pages, next]));
}

export function showJobs(state) {
  running = new Map(state.workers.flatMap(({ jobs }) => jobs).filter(({ id }) => id !== null).map((job) => [job.id, job]));
  models(state.models);
  const { queued_ids, running_ids, ...counts } = state.queue;
  const now = JSON.stringify([counts.queued, counts.completed, counts.failed, counts.cancelled, queued_ids, running_ids]);
  if (now !== queue) refresh();
  else if (running.size > 0) render();
  queue = now;
}

function models(known) {
  const names = known.filter(({ source }) => source !== "pipeline").map(({ name }) => name);
  const select = element("by-model");
  rows(select, ["", ...names], (name) => name, (name) => ({ node: h("option", { value: name }, name || "all"), fill() {} }));
}

function turn(to) {
  pages.splice(0, pages.length, ...to);
  askedAt = -Infinity;
  refresh();
}

/** At most every two seconds, and never twice at once. */
function refresh() {
  clearTimeout(timer);
  timer = setTimeout(load, Math.max(0, askedAt + EVERY_MS - performance.now()));
}

const load = trying(async () => {
  if (asking) {
    refresh();
    return;
  }
  asking = true;
  askedAt = performance.now();
  const query = new URLSearchParams({ limit: PAGE });
  for (const [name, value] of [["status", element("by-status").value], ["model", element("by-model").value], ["cursor", pages.at(-1)]]) {
    if (value) query.set(name, value);
  }
  try {
    ({ jobs, next_cursor: next } = await ask(`/jobs?${query}`));
    render();
  } finally {
    asking = false;
  }
});

function render() {
  rows(element("job-rows"), jobs, (job) => job.job_id, row);
  const filtered = element("by-status").value || element("by-model").value;
  element("no-jobs").hidden = jobs.length > 0;
  say(element("no-jobs"), filtered ? "No job is like this." : "No jobs yet: drop a recording at “Try it”, or send one to POST /transcribe.");
  element("newer").disabled = pages.length === 1;
  element("older").disabled = next === null;
  say(element("page-number"), pages.length > 1 || next !== null ? `page ${pages.length}` : "");
}

function row({ job_id: id, file_name: name }) {
  const state = chip(), doing = h("span", { class: "quiet" }), progress = h("progress", { max: 100, "aria-label": `Progress of ${short(id)}` });
  const cells = Array.from({ length: 5 }, () => h("td", { class: "roomy number" }));
  let job = null;
  const stop = button("Cancel", trying(() => cancel(job)), { "aria-label": `Cancel ${name} ${short(id)}` });
  const node = h("tr", { on: { click: (event) => event.target.closest("a, button") || getSelection().toString() || (location.hash = `#/jobs/${id}`) } },
    h("th", { scope: "row" }, h("a", { href: `#/jobs/${id}` }, name), h("span", { class: "quiet code" }, short(id))),
    h("td", {}, h("div", { class: "line start" }, state, doing), progress), cells, h("td", { class: "end" }, stop));
  return { node, fill(now) {
    job = now;
    const live = now.status === "queued" || now.status === "processing" ? running.get(id) : undefined;
    const status = live ? "processing" : now.status;
    mark(state, status);
    const percent = live ? live.progress : now.progress;
    say(doing, doingOf(now, status, live?.stage ?? now.stage, percent));
    bar(progress, status === "processing" ? percent : null, 100);
    const texts = [now.model, known(now.duration) ? clock(now.duration) : "–", moment(now.created_at), span(now.queue_time_s), now.reused ? "reused" : span(now.processing_time_s)];
    texts.forEach((text, index) => say(cells[index], text));
    stop.hidden = ENDED.has(status);
  } };
}

function doingOf(job, status, stage, percent) {
  if (status === "processing") return `${stage ?? ""} ${Math.round(percent)} %`;
  if (status !== "queued") return job.attempt > 1 ? `${job.attempt} attempts` : "";
  if (stage === "fetching") return "fetching";
  return known(job.queue_position) ? `place ${job.queue_position + 1}` : "";
}
