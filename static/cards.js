// A card per worker: its device's figures, what it does, what it holds.

import { post } from "/static/api.js";
import { Spark } from "/static/charts.js";
import {
  aside, bar, button, chip, element, h, line, mark, problem, progressOf, quiet, rows, say, show, sure, tight, trying,
} from "/static/dom.js";
import { figure, given, known, memory, number, phrase, short, span } from "/static/words.js";

const JOBS_SHOWN = 6;
const SAMPLE_MS = 1000;
const STOPPED = new Set(["draining", "drained", "quarantined"]);

const gigabytes = (mb) => (known(mb) ? mb / 1024 : null);
const share = (used, total) => (known(used) && total ? (100 * used) / total : null);
const nameOf = ({ device }) => `${device.kind === "cpu" ? "CPU" : "GPU"} ${device.index}`;
const limited = (value, limit) => (known(limit) ? `${number(value)} / ${number(limit)}` : number(value));

/** What is measured: its name, the top of its scale, the value of the line, the words. */
const GPU_TILES = [
  ["Utilisation", 100, (gpu) => gpu.util_percent, (gpu) => figure(gpu.util_percent, "%")],
  ["Memory", 100, vramPercent, (gpu) => figure(vramPercent(gpu), "%")],
  ["Power", null, (gpu) => gpu.power_w, (gpu) => `${limited(gpu.power_w, gpu.power_limit_w)} W`],
  ["Temperature", 100, (gpu) => gpu.temperature_c, (gpu) => figure(gpu.temperature_c, "°C")],
];
const HOST_TILES = [
  ["Processor", 100, (host) => host.cpu_percent, (host) => figure(host.cpu_percent, "%")],
  ["Memory", 100, (host) => share(host.memory_used_mb, host.memory_total_mb), hostMemory],
];

function vramPercent(gpu) {
  return share(gpu.vram_used_mb, gpu.vram_total_mb);
}

function hostMemory(host) {
  return `${number(gigabytes(host.memory_used_mb), 1)} / ${figure(gigabytes(host.memory_total_mb), "GB")}`;
}

export function showWorkers(state) {
  const draining = state.paused_by_drain ?? state.health.status === "draining";
  const drain = element("drain");
  drain.hidden = false;
  say(drain, draining ? "Take jobs again" : "Drain all");
  drain.dataset.draining = draining;
  element("no-workers").hidden = state.workers.length > 0;
  rows(element("cards"), state.workers, (worker) => worker.index, card);
  const { gpus, host } = state.telemetry ?? {};
  for (const { index, device } of state.workers) {
    meters.get(index)((device.kind === "cpu" ? host : gpus?.[index]) ?? {});
  }
}

export function start() {
  element("drain").addEventListener("click", trying(async () => {
    const drained = element("drain").dataset.draining === "true";
    const explanation = "It refuses new jobs and finishes those that wait or run, until it is told to take jobs again.";
    if (drained) await post("/resume");
    else if (await sure("Drain the daemon?", explanation, "Drain all")) await post("/drain");
  }));
}

const meters = new Map(); // by the worker's index: shows a reading

function card(worker) {
  const { index, device } = worker, name = nameOf(worker), title = `worker-${index}`;
  const state = chip(), error = problem(), jobs = h("ul", { class: "jobs" });
  const more = aside(), loaded = aside(), process = aside();
  const acts = controls(index, name);
  const meter = device.kind === "cpu" ? tiles(HOST_TILES) : gpuMeter();
  meters.set(index, meter.fill);
  const node = h(
    "article", { class: "panel card", "aria-labelledby": title },
    h("div", { class: "head" }, h("h3", { id: title }, name, " ", quiet(device.name)), state),
    error, meter.nodes, jobs, more, h("div", { class: "foot" }, h("div", {}, loaded, process), acts.node),
  );
  return { node, fill(now) {
    mark(state, now.state);
    show(error, now.error);
    rows(jobs, now.jobs.slice(0, JOBS_SHOWN), (job) => job.id ?? `other ${now.jobs.indexOf(job)}`, jobRow);
    const others = now.jobs.length - JOBS_SHOWN;
    show(more, others > 0 ? `and ${others} more` : now.jobs.length ? "" : "No job at the moment");
    const holds = Object.entries(now.loaded).map(([model, mb]) => `${model} ${memory(mb)}`);
    say(loaded, holds.length ? `Holds ${holds.join(", ")}` : "Holds no model");
    const answered = given(now.answered_s_ago, (seconds) => `answered ${span(seconds)} ago`);
    const restarts = now.restarts ? `restarted ${now.restarts}×` : null;
    say(process, phrase(known(now.pid) ? `pid ${now.pid}` : "no process", answered, restarts));
    acts.fill(STOPPED.has(now.state), now.jobs.length === 0 && holds.length > 0);
  } };
}

function controls(index, name) {
  const does = (verb) => trying(() => post(`/workers/${index}/${verb}`));
  const drain = button("Drain", trying(async () => {
    const explanation = "It finishes its jobs and takes no others, until it is resumed.";
    if (await sure(`Drain ${name}?`, explanation, "Drain")) await post(`/workers/${index}/drain`);
  }), { "aria-label": `Drain ${name}` });
  const resume = button("Resume", does("resume"), { "aria-label": `Resume ${name}` });
  const hint = "Drop its models from memory; the next job loads what it needs";
  const unload = button("Unload", does("unload"), { title: hint, "aria-label": `Unload ${name}` });
  return { node: line(unload, drain, resume), fill(stopped, unloadable) {
    drain.hidden = stopped;
    resume.hidden = !stopped;
    unload.disabled = !unloadable;
  } };
}

function jobRow({ id }) {
  const name = id === null ? quiet("another client’s") : h("a", { href: `#/jobs/${id}` }, short(id));
  const model = h("span", { class: "quiet name" }), said = quiet(), left = quiet();
  const progress = progressOf(id === null ? "a job" : short(id));
  return { node: h("li", {}, tight(name, model, said), tight(progress, left)), fill(job) {
    say(model, job.model);
    say(said, `${job.stage} ${number(job.progress)} %`);
    const speed = given(job.speed, (times) => `${number(times, 1)}×`);
    say(left, phrase(speed, given(job.left_s, (seconds) => `${span(seconds)} left`)));
    bar(progress, job.progress, 100);
  } };
}

function gpuMeter() {
  const { nodes, fill } = tiles(GPU_TILES), vram = vramBar(), board = aside();
  return { nodes: [...nodes, vram.node, board], fill(gpu) {
    fill(gpu);
    vram.fill(gpu);
    const throttle = gpu.throttle?.length ? `throttled: ${gpu.throttle.join(", ")}` : "not throttled";
    show(board, phrase(
      given(gpu.reason ?? null, (reason) => `nothing is known: ${reason}`),
      given(gpu.clock_sm_mhz, (mhz) => `${number(mhz)} MHz`),
      given(gpu.clock_mem_mhz, (mhz) => `memory ${number(mhz)} MHz`),
      given(gpu.throttle, () => throttle),
      given(gpu.ecc_errors, (count) => `ECC errors ${number(count)}`),
      given(gpu.processes, (count) => count === 1 ? "1 process" : `${count} processes`),
    ));
    board.dataset.tone = gpu.throttle?.length || gpu.ecc_errors || gpu.reason ? "wait" : "none";
  } };
}

/** Ours, others', free: as a bar and in words. */
function vramBar() {
  const parts = ["ours", "others", "free"].map((name) => {
    const part = h("i", { class: `vram-${name}` }), said = h("span", { class: `key vram-${name}` });
    return { part, said, fill(gpu) {
      const mb = gpu[`vram_${name}_mb`];
      part.style.width = `${share(mb, gpu.vram_total_mb) ?? 0}%`;
      say(said, `${name} ${memory(mb)}`);
    } };
  });
  const stack = h("div", { class: "stack", "aria-hidden": "true" }, parts.map(({ part }) => part));
  const keys = h("p", { class: "keys" }, parts.map(({ said }) => said));
  const node = h("div", { class: "vram", hidden: true }, stack, keys);
  return { node, fill(gpu) {
    node.hidden = !known(gpu.vram_total_mb);
    parts.forEach(({ fill }) => fill(gpu));
  } };
}

/** Their words change each time, their lines once a second. */
function tiles(kinds) {
  const made = kinds.map(([name, most, value, words]) => {
    const said = h("strong"), spark = new Spark(most);
    return { node: h("div", { class: "tile" }, quiet(name), said, spark.node), fill(reading, sample) {
      say(said, words(reading));
      if (sample) spark.add(Date.now() / 1000, value(reading));
    } };
  });
  let sampledAt = -Infinity;
  return { nodes: [h("div", { class: "tiles" }, made.map(({ node }) => node))], fill(reading) {
    const now = performance.now(), sample = now - sampledAt >= SAMPLE_MS;
    if (sample) sampledAt = now;
    made.forEach(({ fill }) => fill(reading, sample));
  } };
}
