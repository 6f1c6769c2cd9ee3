// A transcript, line by line as it comes, each speaker in a colour of their own; and its downloads.

import { download } from "/static/api.js";
import { button, h, say, trying } from "/static/dom.js";
import { clock } from "/static/words.js";

const COLOURS = 8;
const LONG = 200; // what is not seen is not laid out then
const FORMATS = { srt: "srt", vtt: "vtt", txt: "text", json: "verbose_json", tsv: "tsv" }; // by how files end

export class Transcript {
  #speakers = new Map();

  constructor() {
    this.node = h("ol", { class: "transcript", "aria-label": "Transcript" });
    this.count = 0;
  }

  /** These, from number `first` on, instead of all that were there from that number on. */
  show(first, segments) {
    while (this.node.children.length > first) this.node.lastElementChild.remove();
    let before = first > 0 ? this.node.lastElementChild?.dataset.speaker : undefined;
    this.node.append(...segments.map((segment) => {
      const line = this.#line(segment, segment.speaker ?? "", before);
      before = segment.speaker ?? "";
      return line;
    }));
    this.count = this.node.children.length;
    this.node.classList.toggle("long", this.count > LONG);
  }

  #line({ start, end, text = "" }, speaker, before) {
    const time = h("time", { title: `${clock(start)} to ${clock(end)}` }, clock(start));
    const who = speaker && speaker !== before ? h("strong", { class: "who" }, speaker) : null;
    const said = text || (speaker ? `until ${clock(end)}` : "");
    const data = { speaker, colour: speaker ? this.#colour(speaker) : "none" };
    return h("li", { data }, time, h("span", {}, who, h("span", { class: "text", dir: "auto" }, said.trim())));
  }

  #colour(speaker) {
    if (!this.#speakers.has(speaker)) this.#speakers.set(speaker, this.#speakers.size % COLOURS);
    return this.#speakers.get(speaker);
  }
}

export function downloads(job) {
  const stem = job.file_name.replace(/\.[^.]*$/, "") || "transcript";
  const buttons = Object.entries(FORMATS).map(([ending, format]) => {
    const get = () => download(`/jobs/${job.job_id}/result?format=${format}`, `${stem}.${ending}`);
    return button(ending, trying(get), { "aria-label": `Download as ${ending}` });
  });
  return h("div", { class: "line start downloads", role: "group", "aria-label": "Download the transcript" }, buttons);
}

export function copier(text, value) {
  const copied = trying(async (event) => {
    await navigator.clipboard.writeText(value);
    say(event.target, "Copied");
    setTimeout(() => say(event.target, text), 1500);
  });
  return button(text, copied);
}
