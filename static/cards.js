// A card per worker: its device's figures, what it does, what it holds.

import { post } from "/static/api.js";
import { Spark } from "/static/charts.js";
import { bar, button, chip, element, h, mark, rows, say, show, sure, trying } from "/static/dom.js";
import { figure, known, memory, number, short, span } from "/static/words.js";

const JOBS_SHOWN = 6;
const SAMPLE_MS = 1000;

const GPU_TILES = [
  ["Utilisation", 100, ({ gpu }) => [gpu.util_percent, figure(gpu.util_percent, "%")]],
  ["Memory", 100, ({ gpu }) => [share(gpu.vram_used_mb, gpu.vram_total_mb), figure(share(gpu.vram_used_mb, gpu.vram_total_mb), "%")]],
  ["Power", null, ({ gpu }) => [gpu.power_w, `${number(gpu.power_w)}${known(gpu.power_limit_w) ? ` / ${number(gpu.power_limit_w)}` : ""} W`]],
  ["Temperature", 100, ({ gpu }) => [gpu.temperature_c, figure(gpu.temperature_c, "°C")]],
];
const HOST_TILES = [
  ["Processor", 100, ({ host }) => [host.cpu_percent, figure(host.cpu_percent, "%")]],
  ["Memory", 100, ({ host }) => [share(host.memory_used_mb, host.memory_total_mb), `${number(gigabytes(host.memory_used_mb), 1)} / ${figure(gigabytes(host.memory_total_mb), "GB")}`]],
];

const gigabytes = (mb) => (known(mb) ? mb / 1024 : null);
const share = (used, total) => (known(used) && total ? (100 * used) / total : null);
const nameOf = ({ device }) => `${device.kind === "cpu" ? "CPU" : "GPU"} ${device.index}`;

export function showWorkers(state) {
  const draining = state.paused_by_drain ?? state.health.status === "draining";
  const drain = element("drain");
  drain.hidden = false;
  say(drain, draining ? "Take jobs again" : "Drain all");
  drain.dataset.draining = draining;
  element("no-workers").hidden = state.workers.length > 0;
  rows(element("cards"), state.workers, (worker) => `${worker.index}`, (worker) => card(worker));
  const telemetry = state.telemetry ?? {};
  state.workers.forEach((worker) => cards.get(worker.index)?.measure(telemetry.gpus?.[worker.index], telemetry.host));
}

export function start() {
  element("drain").addEventListener("click", trying(async () => {
    if (element("drain").dataset.draining === "true") await post("/resume");
    else if (await sure("Drain the daemon?", "It refuses new jobs and finishes those that wait or run, until somebody lets it take jobs again.", "Drain all")) await post("/drain");
  }));
}

const cards = new Map();

function card({ index, device }) {
  const part = {
    state: chip(), error: h("p", { class: "bad", hidden: true }), jobs: h("ul", { class: "jobs" }), more: h("p", { class: "quiet" }),
    loaded: h("p", { class: "quiet" }), process: h("p", { class: "quiet" }), board: h("p", { class: "quiet", hidden: true }),
    tiles: h("div", { class: "tiles" }), vram: vramBar(),
  };
  const worker = { index, device };
  const does = (verb) => trying(() => post(`/workers/${index}/${verb}`));
  const drain = button("Drain", trying(async () => {
    if (await sure(`Drain ${nameOf(worker)}?`, "It finishes its jobs and takes no others, until it is resumed.", "Drain")) await post(`/workers/${index}/drain`);
  }));
  const resume = button("Resume", does("resume"));
  const unload = button("Unload", does("unload"), { title: "Drop its models from memory; the next job loads what it needs" });
  for (const [one, verb] of [[drain, "Drain"], [resume, "Resume"], [unload, "Unload"]]) one.setAttribute("aria-label", `${verb} ${nameOf(worker)}`);
  const title = h("h3", { id: `worker-${index}` }, nameOf(worker), " ", h("span", { class: "quiet" }, device.name));
  const node = h("article", { class: "panel card", "aria-labelledby": `worker-${index}` },
    h("div", { class: "head" }, title, part.state), part.error, part.tiles, part.vram.node, part.board, part.jobs, part.more,
    h("div", { class: "foot" }, h("div", {}, part.loaded, part.process), h("div", { class: "line" }, unload, drain, resume)));
  const measure = meter(part, device.kind === "cpu" ? HOST_TILES : GPU_TILES);
  cards.set(index, { measure });

  return { node, fill(now) {
    mark(part.state, now.state);
    show(part.error, now.error);
    rows(part.jobs, now.jobs.slice(0, JOBS_SHOWN), (job) => job.id ?? `other ${now.jobs.indexOf(job)}`, jobRow);
    const more = now.jobs.length - JOBS_SHOWN;
    show(part.more, more > 0 ? `and ${more} more` : now.jobs.length ? "" : "No job at the moment");
    const loaded = Object.entries(now.loaded).map(([name, mb]) => `${name} ${memory(mb)}`);
    say(part.loaded, loaded.length ? `Holds ${loaded.join(", ")}` : "Holds no model");
    say(part.process, [known(now.pid) ? `pid ${now.pid}` : "no process", known(now.answered_s_ago) ? `answered ${span(now.answered_s_ago)} ago` : null,
      now.restarts ? `restarted ${now.restarts}×` : null].filter(Boolean).join(" · "));
    const stopped = ["draining", "drained", "quarantined"].includes(now.state);
    drain.hidden = stopped;
    resume.hidden = !stopped;
    unload.disabled = now.jobs.length > 0 || loaded.length === 0;
  } };
}

function jobRow(job) {
  const name = job.id === null ? h("span", { class: "quiet" }, "another client’s") : h("a", { href: `#/jobs/${job.id}` }, short(job.id));
  const model = h("span", { class: "quiet name" }), said = h("span", { class: "quiet" }), left = h("span", { class: "quiet" });
  const progress = h("progress", { max: 100, "aria-label": `Progress of ${job.id === null ? "a job" : short(job.id)}` });
  return { node: h("li", {}, h("div", { class: "line tight" }, name, model, said), h("div", { class: "line tight" }, progress, left)), fill(now) {
    say(model, now.model);
    say(said, `${now.stage} ${number(now.progress)} %`);
    say(left, [known(now.speed) ? `${number(now.speed, 1)}×` : null, known(now.left_s) ? `${span(now.left_s)} left` : null].filter(Boolean).join(" · "));
    bar(progress, now.progress, 100);
  } };
}

/** Ours, others', free: as a bar and in words. */
function vramBar() {
  const parts = ["ours", "others", "free"].map((name) => ({ name, fill: h("i", { class: `vram-${name}` }), said: h("span", { class: `key vram-${name}` }) }));
  const node = h("div", { class: "vram", hidden: true }, h("div", { class: "stack", "aria-hidden": "true" }, parts.map(({ fill }) => fill)),
    h("p", { class: "quiet keys" }, parts.map(({ said }) => said)));
  return { node, fill(gpu) {
    node.hidden = !known(gpu.vram_total_mb);
    for (const { name, fill, said } of parts) {
      const mb = gpu[`vram_${name}_mb`];
      fill.style.width = `${share(mb, gpu.vram_total_mb) ?? 0}%`;
      say(said, `${name} ${memory(mb)}`);
    }
  } };
}

/** Fills the tiles each time, and their lines once a second. */
function meter(part, kinds) {
  const tiles = kinds.map(([name, most, read]) => {
    const value = h("strong", {}), spark = new Spark(most);
    return { node: h("div", { class: "tile" }, h("span", { class: "quiet" }, name), value, spark.node), value, spark, read };
  });
  part.tiles.append(...tiles.map(({ node }) => node));
  let sampledAt = -Infinity;
  return (gpu, host) => {
    const now = performance.now(), sample = now - sampledAt >= SAMPLE_MS;
    if (sample) sampledAt = now;
    for (const { value, spark, read } of tiles) {
      const [measured, text] = read({ gpu: gpu ?? {}, host: host ?? {} });
      say(value, text);
      if (sample) spark.add(Date.now() / 1000, measured);
    }
    if (gpu) {
      part.vram.fill(gpu);
      const throttle = gpu.throttle?.length ? `throttled: ${gpu.throttle.join(", ")}` : known(gpu.throttle) ? "not throttled" : null;
      show(part.board, [known(gpu.clock_sm_mhz) ? `${number(gpu.clock_sm_mhz)} MHz` : null, known(gpu.clock_mem_mhz) ? `memory ${number(gpu.clock_mem_mhz)} MHz` : null, throttle,
        known(gpu.ecc_errors) ? `ECC errors ${number(gpu.ecc_errors)}` : null, known(gpu.processes) ? `${gpu.processes} process${gpu.processes === 1 ? "" : "es"}` : null].filter(Boolean).join(" · "));
      part.board.dataset.tone = gpu.throttle?.length || gpu.ecc_errors ? "wait" : "none";
    }
  };
}
