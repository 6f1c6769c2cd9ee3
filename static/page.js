// Shows /dashboard/state, asked for every two seconds while the page is seen. What comes from the daemon becomes text
// only, never markup.

const EVERY_MS = 2000;
const SLOWEST_MS = 15000;
const JOBS_SHOWN = 8;
const UNKNOWN = "–";
const TONES = {
  ready: "good", idle: "good", busy: "good",
  starting: "wait", waiting: "wait", downloading: "wait", verifying: "wait", restarting: "wait",
  draining: "wait", drained: "wait",
  error: "bad", failed: "bad", stopped: "bad", quarantined: "bad",
};

const element = (id) => document.getElementById(id);
const number = (value) => (value === null || value === undefined ? UNKNOWN : value.toLocaleString("en"));
const short = (id) => id.slice(0, 8);

function bytes(count) {
  if (count === null) return UNKNOWN;
  if (count >= 1e9) return `${(count / 1e9).toFixed(2)} GB`;
  return count >= 1e6 ? `${(count / 1e6).toFixed(0)} MB` : `${(count / 1e3).toFixed(0)} kB`;
}

function span(seconds) {
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

function show(target, text) {
  target.textContent = text;
  target.hidden = !text;
}

function chip(target, state) {
  target.textContent = state;
  target.dataset.tone = TONES[state] ?? "";
}

function bar(target, value, max) {
  target.hidden = value === null;
  if (value === null) return;
  target.max = max || 1;
  target.value = value;
}

/** As many children as there are items, made from the template of the same name and filled in place. */
function rows(list, template, items, fill) {
  while (list.children.length > items.length) list.lastElementChild.remove();
  while (list.children.length < items.length) list.append(element(template).content.cloneNode(true));
  items.forEach((item, index) => fill(list.children[index], (name) => list.children[index].querySelector(name), item));
}

function fillWorker(_, part, worker) {
  const device = worker.device.kind === "cpu" ? `CPU ${worker.device.index}` : `GPU ${worker.device.index}`;
  part(".name").textContent = `${device} · ${worker.device.name}`;
  chip(part(".state"), worker.state);
  const doing = [];
  const works = worker.jobs.length > 0;
  const progress = worker.jobs.reduce((sum, job) => sum + job.progress, 0) / worker.jobs.length;
  if (worker.jobs.length === 1) {
    const [job] = worker.jobs;
    if (job.id) doing.push(`job ${short(job.id)}`);
    doing.push(job.model, job.stage, `${progress.toFixed(0)} %`);
  } else if (works) {
    doing.push(`${worker.jobs.length} jobs`);
    for (const job of worker.jobs.slice(0, JOBS_SHOWN)) {
      doing.push(`${job.id ? short(job.id) : "job"} ${job.model} ${job.stage} ${job.progress.toFixed(0)} %`);
    }
    if (worker.jobs.length > JOBS_SHOWN) doing.push(`${worker.jobs.length - JOBS_SHOWN} more`);
  } else {
    const loaded = Object.entries(worker.loaded).map(([name, megabytes]) => `${name} (${megabytes.toFixed(0)} MB)`);
    doing.push(loaded.length ? `in memory: ${loaded.join(", ")}` : "no model in memory");
  }
  if (worker.restarts) doing.push(`restarted ${worker.restarts}×`);
  part(".doing").textContent = doing.join(" · ");
  bar(part("progress"), works ? progress : null, 100);
  show(part(".error"), worker.error ?? "");
}

function fillModel(_, part, model) {
  part(".name").textContent = model.name;
  chip(part(".state"), model.state);
  const coming = model.state === "downloading" || model.state === "verifying";
  const doing = [];
  if (coming || (model.state === "failed" && model.done_bytes)) {
    doing.push(`${bytes(model.done_bytes)} of ${bytes(model.size_bytes)}`);
    if (coming && model.rate_bytes_per_s !== null) doing.push(`${bytes(model.rate_bytes_per_s)}/s`);
  } else if (model.size_bytes !== null) {
    doing.push(bytes(model.size_bytes));
  }
  if (model.source === "file") doing.push("local file");
  part(".doing").textContent = doing.join(" · ");
  bar(part("progress"), coming && model.size_bytes ? model.done_bytes : null, model.size_bytes);
  show(part(".error"), model.error ?? "");
}

function fillQueued(state) {
  const ids = state.queue.queued_ids.slice(0, 24);
  const more = state.queue.queued_ids.length - ids.length;
  const items = ids.map((id) => {
    const item = document.createElement("li");
    item.textContent = short(id);
    item.title = id;
    return item;
  });
  if (more > 0) {
    const item = document.createElement("li");
    item.textContent = `… ${more} more`;
    items.push(item);
  }
  element("queued").replaceChildren(...items);
}

function render(state) {
  chip(element("health"), state.health.status);
  show(element("reason"), state.health.reason ?? "");
  element("about").textContent = `version ${state.version} · up ${span(state.uptime_s)}`;
  document.title = state.queue.running ? `(${state.queue.running}) gpu_daemon` : "gpu_daemon";
  for (const name of ["queued", "running", "completed", "failed", "cancelled"]) {
    element(`n-${name}`).textContent = number(state.queue[name]);
  }
  fillQueued(state);
  rows(element("workers"), "worker", state.workers, fillWorker);
  rows(element("models"), "model", state.models, fillModel);
  element("no-models").hidden = state.models.length > 0;
}

function lost(reason) {
  chip(element("health"), "unknown");
  show(element("reason"), "");
  show(element("notice"), `No news from the daemon: ${reason}. What is below may be old. Still asking.`);
}

/** With the shell's $KEY, not the key itself, where one is needed. */
function showCommands() {
  const access = key === null ? [] : ['-H "X-API-Key: $KEY"'];
  const command = (...fields) => ["curl", ...access, ...fields, `${location.origin}/transcribe`].join(" \\\n  ");
  element("curl-wait").textContent = command("-F file=@talk.mp3", "-F wait=true");
  element("curl-callback").textContent = command("-F file=@talk.mp3", "-F callback_url=https://example.org/done");
}

let key = sessionStorage.getItem("api-key");
let failures = 0;
let timer = 0;
let asking = false;

/** How long until the next time, in milliseconds; null: not before something happens. */
async function ask() {
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  try {
    const response = await fetch("/dashboard/state", { headers, signal: AbortSignal.timeout(10000) });
    if (response.status === 401) {
      key = null;
      sessionStorage.removeItem("api-key");
      element("key").hidden = false;
      chip(element("health"), "key needed");
      return null;
    }
    if (!response.ok) throw new Error(`it answered ${response.status}`);
    render(await response.json());
    element("key").hidden = true;
    show(element("notice"), "");
    failures = 0;
    return EVERY_MS;
  } catch (error) {
    failures += 1;
    lost(error.name === "TimeoutError" ? "it does not answer" : error.message);
    return Math.min(SLOWEST_MS, EVERY_MS * failures);
  }
}

async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  const pause = await ask();
  asking = false;
  if (pause !== null) timer = setTimeout(poll, pause);
}

element("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = element("key-value").value;
  sessionStorage.setItem("api-key", key);
  element("key-value").value = "";
  showCommands();
  poll();
});
document.addEventListener("visibilitychange", poll);

showCommands();
poll();
