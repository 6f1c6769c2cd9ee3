// The table of jobs: asked for a page at a time when the queue has changed; what runs moves with the live state.

import { ask, post } from "/static/api.js";
import { bar, button, chip, element, h, mark, progressOf, quiet, rows, say, show, sure, trying } from "/static/dom.js";
import { clock, given, moment, number, short, span, UNKNOWN } from "/static/words.js";

const PAGE = 20;
const EVERY_MS = 2000;
const SEARCHED_EVERY_MS = 10_000; // the daemon reads every job for it
const TYPED_MS = 300;
export const ENDED = new Set(["completed", "failed", "cancelled"]);

const pages = [null]; // the cursor of each page up to the one that is shown
let next = null;
let jobs = [];
let running = new Map();
let queue = "";
let askedAt = -Infinity;
let timer = 0;
let typing = 0;
let asking = false;

export async function cancel(job) {
  const explanation = `${job.file_name} (${short(job.job_id)}): a job that was cancelled does not come back.`;
  if (await sure("Cancel this job?", explanation, "Cancel the job")) await post(`/jobs/${job.job_id}/cancel`);
}

export function start() {
  for (const name of ["by-status", "by-model"]) element(name).addEventListener("change", () => turn([null]));
  element("by-text").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => turn([null]), TYPED_MS);
  });
  element("filters").addEventListener("submit", (event) => event.preventDefault());
  element("newer").addEventListener("click", () => turn(pages.slice(0, -1)));
  element("older").addEventListener("click", () => turn([...pages, next]));
}

export function showJobs(state) {
  running = new Map(state.workers.flatMap((worker) => worker.jobs).map((job) => [job.id, job]));
  models(state.models);
  const { queued, completed, failed, cancelled, queued_ids, running_ids } = state.queue;
  const now = JSON.stringify([queued, completed, failed, cancelled, queued_ids, running_ids]);
  if (now !== queue) refresh();
  else if (running.size > 0) render();
  queue = now;
}

function models(all) {
  const names = all.filter(({ source }) => source !== "pipeline").map(({ name }) => name);
  const option = (name) => ({ node: h("option", { value: name }, name || "all"), fill() {} });
  rows(element("by-model"), ["", ...names], (name) => name, option);
}

function turn(to) {
  pages.splice(0, pages.length, ...to);
  askedAt = -Infinity;
  refresh();
}

const searched = () => element("by-text").value.trim();

/** At most every two seconds, and never twice at once. */
function refresh() {
  clearTimeout(timer);
  const every = searched() ? SEARCHED_EVERY_MS : EVERY_MS;
  timer = setTimeout(load, Math.max(0, askedAt + every - performance.now()));
}

const load = trying(async () => {
  if (asking) {
    refresh();
    return;
  }
  asking = true;
  askedAt = performance.now();
  const query = new URLSearchParams({ limit: PAGE });
  const status = element("by-status").value, model = element("by-model").value;
  const filters = { status, model, search: searched(), cursor: pages.at(-1) };
  for (const [name, value] of Object.entries(filters)) if (value) query.set(name, value);
  try {
    ({ jobs, next_cursor: next } = await ask(`/jobs?${query}`));
    render();
  } finally {
    asking = false;
  }
});

function render() {
  rows(element("job-rows"), jobs, (job) => job.job_id, row);
  const filtered = element("by-status").value || element("by-model").value || searched();
  element("no-jobs").hidden = jobs.length > 0;
  const none = "No jobs yet: drop a recording at “Try it”, or send one to POST /transcribe.";
  say(element("no-jobs"), filtered ? "No job is like this." : none);
  element("newer").disabled = pages.length === 1;
  element("older").disabled = next === null;
  element("pager").hidden = pages.length === 1 && next === null;
  say(element("page-number"), `page ${pages.length}`);
}

function row({ job_id: id, file_name: name }) {
  const state = chip(), doing = quiet(), progress = progressOf(short(id)), why = h("p", { class: "why", hidden: true });
  const cells = Array.from({ length: 5 }, () => h("td", { class: "roomy number" }));
  let job = null;
  const stop = button("Cancel", trying(() => cancel(job)), { "aria-label": `Cancel ${name} ${short(id)}` });
  const link = h("a", { href: `#/jobs/${id}`, dir: "auto" }, name), more = h("span", { class: "quiet code" }, short(id));
  const click = (event) => event.target.closest("a, button") || getSelection().toString() || link.click();
  const node = h(
    "tr", { on: { click } },
    h("th", { scope: "row" }, link, more),
    h("td", {}, h("div", { class: "line start" }, state, doing), progress, why), cells, h("td", { class: "end" }, stop),
  );
  return { node, fill(now) {
    job = now;
    const live = ENDED.has(now.status) ? undefined : running.get(id);
    const { stage, progress: percent } = live ?? now, status = live ? "processing" : now.status;
    mark(state, status);
    say(doing, doingOf(now, status, stage, percent));
    bar(progress, status === "processing" ? percent : null, 100);
    show(why, status === "failed" ? now.error?.message : null);
    why.title = why.textContent;
    const took = now.reused ? "reused" : span(now.processing_time_s);
    const length = given(now.duration, clock) ?? UNKNOWN;
    [now.model, length, moment(now.created_at), span(now.queue_time_s), took].forEach((text, i) => say(cells[i], text));
    stop.hidden = ENDED.has(status);
  } };
}

function doingOf(job, status, stage, percent) {
  if (status === "processing") return `${stage ?? ""} ${number(percent)} %`;
  if (status !== "queued") return job.attempt > 1 ? `${job.attempt} attempts` : "";
  if (stage === "fetching") return "fetching";
  return given(job.queue_position, (ahead) => `place ${ahead + 1}`) ?? "";
}
