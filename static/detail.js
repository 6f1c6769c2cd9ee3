// The drawer with all about one job, at #/jobs/ID; while the job runs it is followed.

import { accessKey, ask, follow, post } from "/static/api.js";
import { bar, button, chip, element, facts, h, mark, say, show, trying } from "/static/dom.js";
import { cancel } from "/static/jobs.js";
import { copier, downloads, Transcript } from "/static/transcript.js";
import { bytes, clock, figure, known, memory, moment, number, short, span, UNKNOWN } from "/static/words.js";

const ROUTE = /^#\/jobs\/([A-Za-z0-9_-]+)$/;
const ENDED = new Set(["completed", "failed", "cancelled"]);
const STAGES = ["waiting", "fetching", "preparing", "loading", "transcribing", "aligning", "diarizing", "merging"];
let following = null;

export function start() {
  const drawer = element("drawer");
  element("drawer-close").addEventListener("click", () => drawer.close());
  drawer.addEventListener("click", (event) => event.target === drawer && drawer.close());
  drawer.addEventListener("close", () => {
    following?.abort();
    if (ROUTE.test(location.hash)) history.pushState(null, "", location.pathname);
  });
  addEventListener("hashchange", route);
  route();
}

function route() {
  const id = ROUTE.exec(location.hash)?.[1];
  const drawer = element("drawer");
  if (id === undefined) {
    if (drawer.open) drawer.close();
    return;
  }
  if (!drawer.open) drawer.showModal();
  open(id);
}

const open = trying(async (id) => {
  following?.abort();
  following = new AbortController();
  const { signal } = following;
  say(element("drawer-title"), `Job ${short(id)}`);
  const said = h("p", { class: "empty" }, "Asking…");
  element("drawer-body").replaceChildren(said);
  try {
    let job = await ask(`/jobs/${id}`, { signal });
    draw(job);
    if (ENDED.has(job.status)) return;
    const { head, transcript } = running(job);
    await follow(id, (event, data) => {
      if (event === "segments") transcript.show(data.first, data.segments);
      else head(data);
    }, signal);
    job = await ask(`/jobs/${id}`, { signal });
    if (!signal.aborted) draw(job);
  } catch (error) {
    if (signal.aborted) return;
    element("drawer-body").replaceChildren(h("p", { class: "bad" }, error.message));
  }
});

/** The parts that move while the job does. */
function running(job) {
  const transcript = new Transcript();
  const state = chip(), doing = h("span", { class: "quiet" }), progress = h("progress", { max: 100, "aria-label": "Progress" });
  const stop = button("Cancel the job", trying(() => cancel(job)));
  const head = (now) => {
    mark(state, now.status);
    say(doing, [now.stage, now.status === "processing" ? `${number(now.progress)} %` : null, now.attempt > 1 ? `attempt ${now.attempt}` : null].filter(Boolean).join(" · "));
    bar(progress, now.status === "processing" ? now.progress : null, 100);
  };
  head(job);
  element("drawer-body").prepend(h("div", { class: "line" }, h("span", { class: "line start" }, state, doing), stop), progress);
  element("drawer-body").append(part("Transcript so far", transcript.node));
  return { head, transcript };
}

const part = (title, ...nodes) => h("section", {}, h("h3", {}, title), nodes);

function draw(job) {
  say(element("drawer-title"), job.file_name);
  const body = element("drawer-body"), { result } = job, ended = ENDED.has(job.status);
  const curl = ["curl", ...(accessKey() === null ? [] : ['-H "X-API-Key: $KEY"']), `${location.origin}/jobs/${job.job_id}`].join(" ");
  const parts = [
    h("div", { class: "line" }, h("span", { class: "line start" }, ended ? mark(chip(), job.status) : null, h("code", { class: "quiet code" }, job.job_id)), copier("Copy as curl", curl)),
  ];
  if (job.error) parts.push(h("p", { class: "notice", data: { tone: "bad" } }, `${job.error.message} (${job.error.code})`));
  parts.push(part("What took how long", timeline(job)), part("What was asked", asked(job)));
  if (job.metadata) parts.push(part("Metadata", h("pre", { tabindex: "0" }, JSON.stringify(job.metadata, null, 2))));
  if (result) parts.push(part("What was heard", heard(job)));
  if (job.callback) parts.push(callbacks(job));
  if (result) parts.push(words(job));
  body.replaceChildren(...parts);
}

/** Waiting and each stage, as bars on one scale. A stage may run beside another. */
function timeline(job) {
  const stages = [["waiting", job.queue_time_s], ...Object.entries(job.timings)].filter(([, seconds]) => known(seconds));
  stages.sort(([a], [b]) => STAGES.indexOf(a) - STAGES.indexOf(b));
  if (stages.length === 0) return h("p", { class: "quiet" }, "It waits for its turn.");
  const longest = Math.max(...stages.map(([, seconds]) => seconds), 0.001);
  return h("ol", { class: "timeline" }, stages.map(([name, seconds]) => {
    const length = h("i", { "aria-hidden": "true" });
    length.style.width = `${Math.max(0.5, (100 * seconds) / longest)}%`;
    return h("li", {}, h("span", {}, name), h("span", { class: "track" }, length), h("span", { class: "number" }, span(seconds)));
  }));
}

function asked(job) {
  const speed = job.duration && job.processing_time_s ? figure(job.duration / job.processing_time_s, "× real time", 1) : UNKNOWN;
  return facts([
    ["Model", job.model], ["Language", job.language], ["Task", job.task], ["Priority", number(job.priority)],
    ["Audio", known(job.duration) ? clock(job.duration) : UNKNOWN], ["Size", bytes(job.file_size_bytes)], ["Attempts", number(job.attempt)],
    ["Sent", moment(job.created_at)], ["Begun", moment(job.started_at)], ["Ended", moment(job.finished_at)], ["Speed", job.reused ? "an earlier job's result" : speed],
    ...(job.source_url ? [["From", job.source_url]] : []),
  ]);
}

function heard({ result }) {
  const { quality, diarization: who, gpu } = result;
  const pairs = [["Language", known(result.language_probability) ? `${result.language}, ${number(100 * result.language_probability)} %` : result.language],
    ["Mode", result.mode], ["Segments", number(result.segments.length)], ["Tokens", number(result.token_count)]];
  const doubts = quality.low_confidence_segments.length + quality.repetition_segments.length + (quality.silence_segments?.length ?? 0);
  pairs.push(["To be doubted", doubts ? `${doubts} segments` : "none"]);
  if (quality.vad_dropped_s) pairs.push(["Without speech", span(quality.vad_dropped_s)]);
  if (who) pairs.push(["Speakers", who.error ? `not known: ${who.error}` : number(who.speakers.length)], ["Found by", `${who.model}${who.device ? ` on ${who.device}` : ""}`]);
  if (gpu) pairs.push([`GPU ${gpu.index}`, `${figure(gpu.util_avg_percent, "%")} on average, ${figure(gpu.util_max_percent, "%")} at most`], ["GPU memory", `${memory(gpu.vram_used_max_mb)} at most`]);
  return facts(pairs);
}

function words(job) {
  const transcript = new Transcript(), { result } = job;
  transcript.show(0, result.segments.length ? result.segments : result.diarization_segments);
  return part("Transcript", downloads(job), transcript.count ? transcript.node : h("p", { class: "empty" }, "Nothing was said."));
}

function callbacks(job) {
  const list = h("ul", { class: "rows" }), said = h("p", { class: "quiet" }), address = h("p", { class: "quiet code" });
  const fill = (log) => {
    show(address, log.url);
    say(said, [log.state ?? "it is sent when the job has ended", `${log.attempts} attempts`, log.next_attempt_at ? `next at ${moment(log.next_attempt_at)}` : null].filter(Boolean).join(" · "));
    list.replaceChildren(...log.deliveries.toReversed().map((tried) => h("li", { class: "line" }, h("span", {}, `${tried.number}. ${moment(tried.at)}`),
      h("span", { class: tried.delivered ? "quiet" : "bad" }, tried.error ?? `answered ${tried.status}`), h("span", { class: "quiet" }, span(tried.duration_s)))));
  };
  const again = button("Send again", trying(async () => fill(await (await post(`/jobs/${job.job_id}/callbacks/redeliver`)).json())));
  again.disabled = !ENDED.has(job.status);
  trying(async () => fill(await ask(`/jobs/${job.job_id}/callbacks`)))();
  return part("Callback", h("div", { class: "line" }, said, again), address, list);
}
