// The daemon's state, kept up to date. It is asked for, then told over a WebSocket; where that does not get through, it
// goes on being asked for. Nobody asks while the page is paused or not seen.

import { access, accessKey, ask, keyWanted, Refused } from "/static/api.js";

const POLL_MS = 2000;
const SLOWEST_MS = 15_000;
const SOCKET_SLOWEST_MS = 60_000;
const OPENS_WITHIN_MS = 10_000;
const SILENT_MS = 25_000; // the daemon sends a beat every 15 s
const WRONG_KEY = 4401;

/** Says `state` with the names of the members that changed, `status` when how it is known has changed, or its age. */
export class Live extends EventTarget {
  state = {};
  status = "connecting"; // live, polling, reconnecting, paused, key needed
  reason = "";
  #heardAt = null;
  #socket = null;
  #openedAt = 0;
  #seq = null;
  #socketFailures = 0;
  #socketNotBefore = 0;
  #failures = 0;
  #asking = false;
  #timer = 0;
  #paused = false;
  #keyless = false;

  start() {
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#rest() : this.#round()));
    addEventListener("online", () => this.#again());
    addEventListener("offline", () => this.#socket?.close());
    access.addEventListener("wanted", () => this.#lock(true));
    access.addEventListener("given", () => this.#lock(false));
    setInterval(() => this.#watch(), 1000);
    this.#round();
  }

  get paused() {
    return this.#paused;
  }

  /** Seconds since the daemon was heard; null: not yet. */
  get age_s() {
    return this.#heardAt === null ? null : (performance.now() - this.#heardAt) / 1000;
  }

  pause(paused) {
    this.#paused = paused;
    if (paused) {
      this.#rest();
      this.#become("paused");
    } else {
      this.#become("connecting");
      this.#again();
    }
  }

  get #active() {
    return !this.#paused && !this.#keyless && !document.hidden;
  }

  #lock(keyless) {
    this.#keyless = keyless;
    if (keyless) {
      this.#rest();
      this.#become("key needed");
    } else {
      this.#again();
    }
  }

  #again() {
    this.#socketNotBefore = 0;
    this.#failures = 0;
    this.#round();
  }

  #rest() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #become(status, reason = "") {
    this.status = status;
    this.reason = reason;
    this.dispatchEvent(new Event("status"));
  }

  #apply(state) {
    this.#heardAt = performance.now();
    Object.assign(this.state, state);
    this.dispatchEvent(new CustomEvent("state", { detail: Object.keys(state) }));
  }

  /** Asks once, and tries the WebSocket when its time has come. */
  async #round() {
    clearTimeout(this.#timer);
    if (!this.#active || this.#asking || this.#socket !== null) return;
    this.#asking = true;
    try {
      this.#apply(await ask("/dashboard/state", { signal: AbortSignal.timeout(SLOWEST_MS) }));
      this.#failures = 0;
      if (this.#socketFailures > 0 && this.#active) this.#become("polling");
    } catch (error) {
      this.#failures += 1;
      const reason = error instanceof Refused ? error.message : "it does not answer";
      if (this.#active) this.#become("reconnecting", reason);
    }
    this.#asking = false;
    if (!this.#active) return;
    if (this.#failures === 0 && performance.now() >= this.#socketNotBefore) this.#connect();
    else this.#later(Math.min(SLOWEST_MS, POLL_MS * Math.max(1, this.#failures)));
  }

  #later(pause_ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#round(), pause_ms * (0.8 + 0.4 * Math.random()));
  }

  #connect() {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/dashboard`);
    this.#socket = socket;
    this.#openedAt = performance.now();
    this.#seq = null;
    socket.addEventListener("open", () => {
      if (accessKey() !== null) socket.send(JSON.stringify({ type: "key", key: accessKey() }));
    });
    socket.addEventListener("message", ({ data }) => this.#socket === socket && this.#hear(JSON.parse(data)));
    socket.addEventListener("close", ({ code }) => this.#socket === socket && this.#lost(code));
  }

  #hear({ type, seq, state }) {
    this.#heardAt = performance.now();
    if (type === "snapshot") {
      this.#seq = seq;
      this.#socketFailures = 0;
      if (this.status !== "live") this.#become("live");
      this.#apply(state);
    } else if (this.#seq !== null && seq !== this.#seq + (type === "delta" ? 1 : 0)) {
      this.#openedAt = performance.now();
      this.#seq = null; // something was missed: what follows means nothing until a whole state has come
      this.#socket.send(JSON.stringify({ type: "snapshot" }));
    } else if (this.#seq !== null && type === "delta") {
      this.#seq = seq;
      this.#apply(state);
    }
  }

  #lost(code) {
    const wasLive = this.#seq !== null;
    this.#socket = null;
    if (code === WRONG_KEY) {
      keyWanted();
      return;
    }
    this.#socketFailures = wasLive ? 0 : this.#socketFailures + 1;
    const pause_ms = wasLive ? 0 : Math.min(SOCKET_SLOWEST_MS, POLL_MS * 2 ** this.#socketFailures);
    this.#socketNotBefore = performance.now() + pause_ms;
    if (!this.#active) return;
    if (wasLive) this.#become("reconnecting", "the connection was lost");
    this.#later(wasLive ? POLL_MS / 4 : POLL_MS);
  }

  #watch() {
    if (this.status !== "live" && !document.hidden) this.dispatchEvent(new Event("status")); // the age has changed
    if (!this.#active) return;
    const now = performance.now();
    const quiet = this.#seq !== null && now - this.#heardAt > SILENT_MS;
    const stuck = this.#seq === null && now - this.#openedAt > OPENS_WITHIN_MS;
    if (this.#socket === null || !(quiet || stuck)) return;
    const socket = this.#socket;
    this.#lost(0);
    socket.close();
  }
}
