// Drop a recording, watch it, read it: what any client does by POST /transcribe and GET /jobs/ID/events.

import { ask, credentials, follow, refusal } from "/static/api.js";
import {
  bar, button, chip, element, h, line, mark, notice, problem, progressOf, quiet, rows, say, show, trying,
} from "/static/dom.js";
import { cancel, ENDED } from "/static/jobs.js";
import { downloads, Transcript } from "/static/transcript.js";
import { bytes, given, number } from "/static/words.js";

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
  element("try-diarize").addEventListener("change", ({ target }) => {
    element("try-speakers").disabled = !target.checked;
  });
}

export function showChoices({ models }) {
  const usable = models.filter((model) => model.enabled && model.source !== "pipeline");
  const option = ({ name }) => ({ node: h("option", { value: name }, name || "the default"), fill() {} });
  rows(element("try-model"), [{ name: "" }, ...usable], ({ name }) => name, option);
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
    request.addEventListener("load", () => {
      if (request.status < 300) done(JSON.parse(request.responseText));
      else failed(refusal(request.status, request.responseText));
    });
    request.send(form);
  });
}

const send = trying(async () => {
  notice("");
  const form = new FormData();
  const model = element("try-model").value, language = element("try-language").value;
  const diarize = element("try-diarize").checked ? "true" : "";
  const num_speakers = diarize && element("try-speakers").value;
  const fields = { model, language, diarize, num_speakers, file };
  for (const [name, value] of Object.entries(fields)) if (value) form.set(name, value);
  element("try-send").disabled = true;
  const shown = panel();
  try {
    const { job_id } = await upload(form, shown.sent);
    const hear = (event, data) => (event === "segments" ? shown.heard(data) : shown.moved(data));
    await follow(job_id, hear, new AbortController().signal);
  } catch (error) {
    shown.broke(error.message);
  } finally {
    element("try-send").disabled = false;
  }
});

function panel() {
  const state = chip(), said = quiet(), error = problem(), after = h("div");
  const progress = progressOf("your recording"), transcript = new Transcript();
  let job = null;
  const stop = button("Cancel", trying(() => cancel(job)), { hidden: true });
  const doing = h("span", { class: "line start" }, h("span", { role: "status" }, state), said);
  element("try-job").replaceChildren(line(doing, stop), progress, error, after, transcript.node);
  element("try-job").hidden = false;
  mark(state, "uploading");
  return {
    sent(loaded, total) {
      say(said, `${bytes(loaded)} of ${bytes(total)}`);
      bar(progress, loaded, total);
    },
    heard: ({ first, segments }) => transcript.show(first, segments),
    moved(now) {
      job = now;
      const processing = now.status === "processing", ended = ENDED.has(now.status);
      const place = given(now.queue_position, (ahead) => `place ${ahead + 1}`) ?? "";
      mark(state, now.status);
      say(said, processing ? `${now.stage} ${number(now.progress)} %` : place);
      bar(progress, processing ? now.progress : null, 100);
      show(error, now.error?.message);
      stop.hidden = ended;
      const all = h("a", { href: `#/jobs/${now.job_id}` }, "All about this job");
      if (ended) after.replaceChildren(...(now.status === "completed" ? [downloads(now), all] : [all]));
    },
    broke(message) {
      mark(state, "failed");
      say(said, "");
      bar(progress, null);
      show(error, message);
    },
  };
}
