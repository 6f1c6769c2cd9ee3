// Drop a recording, watch it, read it: what any client does by POST /transcribe and GET /jobs/ID/events.

import { ask, credentials, follow, refusal } from "/static/api.js";
import { bar, button, chip, element, h, mark, notice, rows, say, show, trying } from "/static/dom.js";
import { cancel } from "/static/jobs.js";
import { downloads, Transcript } from "/static/transcript.js";
import { bytes, number } from "/static/words.js";

const ENDED = new Set(["completed", "failed", "cancelled"]);
let file = null;
let languages = false;

export function start() {
  const drop = element("drop");
  element("file").addEventListener("change", ({ target }) => take(target.files[0]));
  for (const [event, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    drop.addEventListener(event, (dragged) => {
      dragged.preventDefault();
      drop.classList.toggle("over", over);
      if (event === "drop") take(dragged.dataTransfer.files[0]);
    });
  }
  element("try-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (file !== null) send();
  });
  element("try-language").addEventListener("focus", trying(fillLanguages));
}

export function showChoices({ models }) {
  const usable = models.filter((model) => model.enabled && model.source !== "pipeline");
  rows(element("try-model"), [{ name: "" }, ...usable], ({ name }) => name, ({ name }) => ({ node: h("option", { value: name }, name || "the default"), fill() {} }));
}

async function fillLanguages() {
  if (languages) return;
  languages = true;
  const known = (await ask("/languages")).languages.toSorted((a, b) => a.name.localeCompare(b.name));
  element("try-language").append(...known.map(({ code, name }) => h("option", { value: code }, name)));
}

function take(chosen) {
  if (!chosen) return;
  file = chosen;
  say(element("file-name"), file.name);
  say(element("file-more"), `${bytes(file.size)} · drop another to change it`);
  element("try-send").disabled = false;
}

/** The job, once its upload is through. */
function upload(form, hear) {
  const request = new XMLHttpRequest(); // fetch does not tell how much has gone
  request.open("POST", "/transcribe");
  for (const [name, value] of Object.entries(credentials())) request.setRequestHeader(name, value);
  request.upload.addEventListener("progress", ({ loaded, total }) => hear(loaded, total));
  return new Promise((done, failed) => {
    request.addEventListener("error", () => failed(new Error("the upload broke off")));
    request.addEventListener("load", () => (request.status < 300 ? done(JSON.parse(request.responseText)) : failed(refusal(request.status, request.responseText))));
    request.send(form);
  });
}

const send = trying(async () => {
  notice("");
  const form = new FormData();
  for (const [name, value] of [["model", element("try-model").value], ["language", element("try-language").value]]) if (value) form.set(name, value);
  if (element("try-diarize").checked) form.set("diarize", "true");
  form.set("file", file);
  element("try-send").disabled = true;
  const shown = panel();
  try {
    const { job_id } = await upload(form, shown.sent);
    await follow(job_id, (event, data) => (event === "segments" ? shown.heard(data) : shown.moved(data)), new AbortController().signal);
  } catch (error) {
    shown.broke(error.message);
  } finally {
    element("try-send").disabled = false;
  }
});

function panel() {
  const state = chip("uploading"), said = h("span", { class: "quiet" }), error = h("p", { class: "bad", hidden: true }), after = h("div");
  const progress = h("progress", { max: 100, "aria-label": "Progress of your recording" }), transcript = new Transcript();
  let job = null;
  const stop = button("Cancel", trying(() => cancel(job)), { hidden: true });
  const host = element("try-job");
  host.replaceChildren(h("div", { class: "line" }, h("span", { class: "line start" }, h("span", { role: "status" }, state), said), stop), progress, error, after, transcript.node);
  host.hidden = false;
  mark(state, "uploading");
  return {
    sent(loaded, total) {
      say(said, `${bytes(loaded)} of ${bytes(total)}`);
      bar(progress, loaded, total);
    },
    heard: ({ first, segments }) => transcript.show(first, segments),
    moved(now) {
      job = now;
      mark(state, now.status);
      const doing = now.status === "processing";
      say(said, doing ? `${now.stage} ${number(now.progress)} %` : now.status === "queued" && now.queue_position !== null ? `place ${now.queue_position + 1}` : "");
      bar(progress, doing ? now.progress : null, 100);
      stop.hidden = ENDED.has(now.status);
      show(error, now.error?.message);
      if (ENDED.has(now.status)) after.replaceChildren(...(now.status === "completed" ? [downloads(now)] : []), h("a", { href: `#/jobs/${now.job_id}` }, "All about this job"));
    },
    broke(message) {
      mark(state, "failed");
      say(said, "");
      bar(progress, null);
      show(error, message);
    },
  };
}
