// The catalogue: what is there, what is coming, what could be.

import { call } from "/static/api.js";
import { bar, button, chip, element, h, mark, rows, say, show, sure, trying } from "/static/dom.js";
import { bytes, known, memory, moment, span } from "/static/words.js";

const COMING = new Set(["downloading", "verifying"]);
const SOURCES = { file: "local file", pipeline: "who speaks when" };

const change = (name, enabled) =>
  call(`/models/${encodeURIComponent(name)}`, { method: "PATCH", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ enabled }) });

export function showModels({ models, telemetry }) {
  const enabled = models.filter((model) => model.enabled), others = models.filter((model) => !model.enabled);
  rows(element("model-rows"), enabled, (model) => model.name, row);
  rows(element("other-rows"), others, (model) => model.name, row);
  element("no-models").hidden = enabled.length > 0;
  element("others").hidden = others.length === 0;
  say(element("others-said"), `${others.length} more, not enabled`);
  const host = telemetry?.host;
  say(element("disk"), known(host?.disk_free_mb) ? `${memory(host.disk_free_mb)} free on disk` : "");
}

function row({ name, source }) {
  const state = chip(), said = h("p", { class: "quiet" }), error = h("p", { class: "bad", hidden: true });
  const progress = h("progress", { "aria-label": `Download of ${name}` });
  const named = (verb) => ({ "aria-label": `${verb} ${name}` });
  const retry = button("Try again", trying(() => change(name, true)), named("Try again:"));
  const enable = button("Enable", trying(() => change(name, true)), named("Enable"));
  const disable = button("Disable", trying(async () => {
    if (await sure(`Disable ${name}?`, "New jobs cannot ask for it any more. Its file stays.", "Disable")) await change(name, false);
  }), named("Disable"));
  const node = h("li", {}, h("div", { class: "line tight" }, h("strong", { class: "name" }, name), state), h("div", { class: "line" }, said, h("span", { class: "line acts" }, retry, enable, disable)), progress, error);
  return { node, fill(model) {
    const coming = COMING.has(model.state), partly = coming || (model.state === "failed" && model.done_bytes > 0);
    mark(state, model.state);
    say(said, [
      partly ? `${bytes(model.done_bytes)} of ${bytes(model.size_bytes)}` : known(model.size_bytes) ? bytes(model.size_bytes) : null,
      coming && known(model.rate_bytes_per_s) ? `${bytes(model.rate_bytes_per_s)}/s` : null,
      coming && known(model.left_s) ? `${span(model.left_s)} left` : null,
      SOURCES[model.source] ?? null, known(model.retry_at) ? `next try at ${moment(model.retry_at)}` : null,
    ].filter(Boolean).join(" · "));
    bar(progress, coming && model.size_bytes ? model.done_bytes : null, model.size_bytes);
    show(error, model.error);
    const ours = source !== "pipeline"; // it is a setting, not a row of the catalogue
    retry.hidden = !ours || model.state !== "failed";
    enable.hidden = !ours || model.enabled;
    disable.hidden = !ours || !model.enabled;
  } };
}
