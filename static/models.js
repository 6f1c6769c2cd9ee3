// The catalogue: what is there, what is coming, what could be.

import { call } from "/static/api.js";
import {
  aside, bar, button, chip, element, h, mark, problem, rows, say, show, sure, tight, trying,
} from "/static/dom.js";
import { bytes, given, memory, phrase, span } from "/static/words.js";

const COMING = new Set(["downloading", "verifying"]);
const SOURCES = { file: "local file", pipeline: "who speaks when" };

function change(name, enabled) {
  const headers = { "Content-Type": "application/json" }, body = JSON.stringify({ enabled });
  return call(`/models/${encodeURIComponent(name)}`, { method: "PATCH", headers, body });
}

export function showModels({ models, telemetry }) {
  const enabled = models.filter((model) => model.enabled), others = models.filter((model) => !model.enabled);
  const key = ({ source, name }) => `${source} ${name}`; // a pipeline may have a model's name
  rows(element("model-rows"), enabled, key, row);
  rows(element("other-rows"), others, key, row);
  element("no-models").hidden = enabled.length > 0;
  element("others").hidden = others.length === 0;
  say(element("others-said"), `${others.length} more, not enabled`);
  say(element("disk"), given(telemetry?.host.disk_free_mb, (mb) => `${memory(mb)} free on disk`) ?? "");
}

function row({ name, source }) {
  const state = chip(), said = aside(), error = problem();
  const progress = h("progress", { "aria-label": `Download of ${name}` });
  const act = (verb, does) => button(verb, trying(does), { "aria-label": `${verb} ${name}` });
  const retry = act("Try again", () => change(name, true));
  const enable = act("Enable", () => change(name, true));
  const disable = act("Disable", async () => {
    const explanation = "New jobs cannot ask for it any more. Its file stays.";
    if (await sure(`Disable ${name}?`, explanation, "Disable")) await change(name, false);
  });
  const acts = tight(retry, enable, disable);
  const node = h("li", {}, tight(h("strong", { class: "name" }, name), state), tight(said, acts), progress, error);
  return { node, fill(model) {
    mark(state, model.state);
    say(said, phrase(...coming(model), SOURCES[source]));
    bar(progress, COMING.has(model.state) && model.size_bytes ? model.done_bytes : null, model.size_bytes);
    show(error, model.error);
    const ours = source !== "pipeline"; // that one is a setting, not a row of the catalogue
    retry.hidden = !ours || model.state !== "failed";
    enable.hidden = !ours || model.enabled;
    disable.hidden = !ours || !model.enabled;
  } };
}

function coming({ state, size_bytes: size, done_bytes: done, rate_bytes_per_s: rate, left_s: left }) {
  const whole = given(size, bytes);
  if (!COMING.has(state)) return [state === "failed" && done > 0 ? `${bytes(done)} of ${bytes(size)}` : whole];
  const pace = given(rate, (each) => `${bytes(each)}/s`);
  return [`${bytes(done)} of ${bytes(size)}`, pace, given(left, (seconds) => `${span(seconds)} left`)];
}
