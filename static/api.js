// What the page asks of the daemon, with the key where one is needed; and a job's events.

const COME_BACK_MS = 2000;

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Says `wanted` when the daemon refuses the key, or asks for one, and `given` when somebody has typed it. */
export const access = new EventTarget();
let key = sessionStorage.getItem("api-key");

export const accessKey = () => key;

export function giveKey(value) {
  key = value;
  sessionStorage.setItem("api-key", value);
  access.dispatchEvent(new Event("given"));
}

export function keyWanted() {
  key = null;
  sessionStorage.removeItem("api-key");
  access.dispatchEvent(new Event("wanted"));
}

export const credentials = () => (key === null ? {} : { Authorization: `Bearer ${key}` });

/** The error of an answer, in the daemon's own words where it has some. */
export function refusal(status, text) {
  if (status === 401) keyWanted();
  try {
    return new Refused(JSON.parse(text).error.message, status);
  } catch {
    return new Refused(`the daemon answered ${status}`, status);
  }
}

export async function call(path, { headers, ...options } = {}) {
  const response = await fetch(path, { ...options, headers: { ...credentials(), ...headers } });
  if (!response.ok) throw refusal(response.status, await response.text());
  return response;
}

export const ask = async (path, options) => (await call(path, options)).json();
export const post = (path) => call(path, { method: "POST" });

/** Saves what the daemon answers; a plain link could not carry the key. */
export async function download(path, name) {
  const url = URL.createObjectURL(await (await call(path)).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Calls `hear(name, data)` for each event of a job up to its `end`, over lost connections, until `signal` aborts. */
export async function follow(jobId, hear, signal) {
  let last = null;
  while (!signal.aborted) {
    try {
      const headers = last === null ? {} : { "Last-Event-ID": last };
      const response = await call(`/jobs/${jobId}/events`, { headers, signal });
      if (response.status === 204) return;
      for await (const event of events(response.body)) {
        last = event.id;
        hear(event.event, JSON.parse(event.data));
        if (event.event === "end") return;
      }
    } catch (error) {
      if (error instanceof Refused && error.status < 500) throw error;
    }
    await new Promise((done) => setTimeout(done, COME_BACK_MS));
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if ("data" in fields) yield fields;
    }
  }
}
