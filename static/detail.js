// The drawer with all about one job, at #/jobs/ID; while the job runs it is followed.

import { accessKey, ask, follow, post } from "/static/api.js";
import {
  aside, bar, button, chip, element, facts, h, line, mark, problem, progressOf, quiet, say, show, trying,
} from "/static/dom.js";
import { cancel, ENDED } from "/static/jobs.js";
import { copier, downloads, Transcript } from "/static/transcript.js";
import {
  bytes, clock, count, figure, given, known, memory, moment, number, phrase, short, span, UNKNOWN,
} from "/static/words.js";

const ROUTE = /^#\/jobs\/([A-Za-z0-9_-]+)$/;
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
  element("drawer-body").replaceChildren(h("p", { class: "empty" }, "Asking…"));
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
    const said = problem();
    show(said, error.message);
    element("drawer-body").replaceChildren(said);
  }
});

/** The parts that move while the job does. */
function running(job) {
  const transcript = new Transcript();
  const state = chip(), doing = quiet(), progress = progressOf("this job");
  const stop = button("Cancel the job", trying(() => cancel(job)));
  const head = ({ status, stage, progress: percent, attempt }) => {
    const moves = status === "processing" || percent > 0; // one that waits may have fetched its file
    mark(state, status);
    say(doing, phrase(stage, moves ? `${number(percent)} %` : null, attempt > 1 ? `attempt ${attempt}` : null));
    bar(progress, moves ? percent : null, 100);
  };
  head(job);
  element("drawer-body").prepend(line(h("span", { class: "line start" }, state, doing), stop), progress);
  element("drawer-body").append(part("Transcript so far", transcript.node));
  return { head, transcript };
}

const part = (title, ...nodes) => h("section", {}, h("h3", {}, title), nodes);

function draw(job) {
  const { result, error } = job;
  say(element("drawer-title"), job.file_name);
  const parts = [identity(job)];
  if (error) parts.push(h("p", { class: "notice", data: { tone: "bad" } }, `${error.message} (${error.code})`));
  parts.push(part("What took how long", timeline(job)), part("What was asked", asked(job)));
  if (job.metadata) parts.push(part("Metadata", h("pre", { tabindex: "0" }, JSON.stringify(job.metadata, null, 2))));
  if (result) parts.push(part("What was heard", heard(result)));
  if (job.callback) parts.push(callbacks(job));
  if (result) parts.push(words(job));
  element("drawer-body").replaceChildren(...parts);
}

function identity({ job_id: id, status }) {
  const key = accessKey() === null ? [] : ['-H "X-API-Key: $KEY"']; // the shell's, not the key itself
  const curl = ["curl", ...key, `${location.origin}/jobs/${id}`].join(" ");
  const state = ENDED.has(status) ? mark(chip(), status) : null;
  const named = h("span", { class: "line start" }, state, h("code", { class: "quiet" }, id));
  return line(named, copier("Copy as curl", curl));
}

/** Waiting and each stage, as bars on one scale. A stage may run beside another. */
function timeline(job) {
  const all = [["waiting", job.queue_time_s], ...Object.entries(job.timings)];
  const stages = all.filter(([, seconds]) => known(seconds));
  stages.sort(([a], [b]) => STAGES.indexOf(a) - STAGES.indexOf(b));
  if (stages.length === 0) return aside("It waits for its turn.");
  const longest = Math.max(...stages.map(([, seconds]) => seconds), 0.001);
  return h("ol", { class: "timeline" }, stages.map(([name, seconds]) => {
    const length = h("i", { "aria-hidden": "true" });
    length.style.width = `${Math.max(0.5, (100 * seconds) / longest)}%`;
    return h("li", {}, h("span", {}, name), h("span", { class: "track" }, length), h("span", {}, span(seconds)));
  }));
}

function asked(job) {
  const times = job.duration && job.processing_time_s ? job.duration / job.processing_time_s : null;
  return facts([
    ["Model", job.model],
    ["Language", job.language],
    ["Task", job.task],
    ["Priority", number(job.priority)],
    ["Audio", given(job.duration, clock) ?? UNKNOWN],
    ["Size", bytes(job.file_size_bytes)],
    ["Attempts", number(job.attempt)],
    ["Sent", moment(job.created_at)],
    ["Begun", moment(job.started_at)],
    ["Ended", moment(job.finished_at)],
    ["Speed", job.reused ? "an earlier job's result" : figure(times, "× real time", 1)],
    ...(job.source_url ? [["From", job.source_url]] : []),
  ]);
}

function heard({ language, language_probability, mode, segments, token_count, quality, diarization: who, gpu }) {
  const { low_confidence_segments: low, repetition_segments: loops, silence_segments: silent = [] } = quality;
  const doubted = new Set([...low, ...loops, ...silent]).size;
  const pairs = [
    ["Language", phrase(language, given(language_probability, (share) => `${number(100 * share)} %`))],
    ["Mode", mode],
    ["Segments", number(segments.length)],
    ["Tokens", number(token_count)],
    ["To be doubted", doubted ? count(doubted, "segment") : "none"],
  ];
  if (quality.vad_dropped_s) pairs.push(["Without speech", span(quality.vad_dropped_s)]);
  if (who) {
    pairs.push(["Speakers", who.error ? `not known: ${who.error}` : number(who.speakers.length)]);
    pairs.push(["Found by", phrase(who.model, who.device)]);
  }
  if (gpu) {
    const [average, most] = [gpu.util_avg_percent, gpu.util_max_percent].map((percent) => figure(percent, "%"));
    pairs.push([`GPU ${gpu.index}`, `${average}, at most ${most}`]);
    pairs.push(["GPU memory", `at most ${memory(gpu.vram_used_max_mb)}`]);
  }
  return facts(pairs);
}

function words(job) {
  const transcript = new Transcript(), { segments, diarization_segments: turns } = job.result;
  transcript.show(0, segments.length ? segments : turns);
  const nothing = h("p", { class: "empty" }, "Nothing was said.");
  return part("Transcript", downloads(job), transcript.count ? transcript.node : nothing);
}

function callbacks({ job_id: id, status }) {
  const list = h("ul", { class: "rows" }), said = aside(), address = h("p", { class: "quiet code" });
  const fill = ({ url, state, attempts, next_attempt_at: next, deliveries }) => {
    show(address, url);
    const tries = count(attempts, "attempt"), again = given(next, (at) => `next at ${moment(at)}`);
    say(said, phrase(state ?? "it is sent when the job has ended", tries, again));
    list.replaceChildren(...deliveries.toReversed().map(delivery));
  };
  const redeliver = async () => fill(await (await post(`/jobs/${id}/callbacks/redeliver`)).json());
  const again = button("Send again", trying(redeliver));
  again.disabled = !ENDED.has(status);
  trying(async () => fill(await ask(`/jobs/${id}/callbacks`)))();
  return part("Callback", line(said, again), address, list);
}

function delivery({ number: nth, at, delivered, error, status, duration_s }) {
  const outcome = h("span", { class: delivered ? "quiet" : "bad" }, error ?? `answered ${status}`);
  return h("li", { class: "line" }, h("span", {}, `${nth}. ${moment(at)}`), outcome, quiet(span(duration_s)));
}
