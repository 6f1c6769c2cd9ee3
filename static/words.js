// How figures, sizes and times are said. What is not known is a dash, never 0.

export const UNKNOWN = "–";
export const known = (value) => value !== null && value !== undefined;

const formats = new Map();

export function number(value, digits = 0) {
  if (!known(value)) return UNKNOWN;
  if (!formats.has(digits)) {
    formats.set(digits, new Intl.NumberFormat("en", { maximumFractionDigits: digits }));
  }
  return formats.get(digits).format(value);
}

/** Of a value that is known; else null. */
export const given = (value, text) => (known(value) ? text(value) : null);

/** Of what there is to say. */
export const phrase = (...parts) => parts.filter(Boolean).join(" · ");

export const count = (value, thing) => `${number(value)} ${thing}${value === 1 ? "" : "s"}`;

export const figure = (value, unit, digits = 0) => (known(value) ? `${number(value, digits)} ${unit}` : UNKNOWN);

export function bytes(count) {
  if (!known(count)) return UNKNOWN;
  if (count >= 1e9) return figure(count / 1e9, "GB", 2);
  return count >= 1e6 ? figure(count / 1e6, "MB") : figure(count / 1e3, "kB");
}

/** Of memory, which is counted in 1024s. */
export const memory = (mb) => (known(mb) && mb >= 1000 ? figure(mb / 1024, "GB", 1) : figure(mb, "MB"));

export function span(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const whole = Math.floor(seconds), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  if (hours >= 48) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  if (minutes) return minutes < 10 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  if (seconds > 0 && seconds < 0.1) return "< 0.1 s";
  return seconds < 10 ? figure(seconds, "s", 1) : `${whole} s`;
}

/** A place in a recording. */
export function clock(seconds) {
  const whole = Math.floor(seconds), hours = Math.floor(whole / 3600);
  const minutes = String(Math.floor(whole / 60) % 60), rest = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${minutes.padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

const atTime = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const atDay = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const DAY_MS = 86_400_000;

export function moment(at) {
  if (!known(at)) return UNKNOWN;
  const date = new Date(at);
  return (Date.now() - date < DAY_MS ? atTime : atDay).format(date);
}

export const short = (id) => id.slice(0, 8);

const TONES = {
  good: ["ready", "idle", "completed", "delivered", "live", "loaded"],
  busy: ["busy", "processing", "running"],
  wait: [
    "starting", "waiting", "downloading", "verifying", "restarting", "draining", "drained", "queued", "pending",
    "retrying", "connecting", "reconnecting", "stale", "polling", "paused", "key needed", "warning",
  ],
  bad: ["error", "failed", "stopped", "quarantined", "dead", "unknown"],
};
const toneOf = new Map(Object.entries(TONES).flatMap(([tone, states]) => states.map((state) => [state, tone])));

/** good, busy, wait, bad or none. */
export const tone = (state) => toneOf.get(state) ?? "none";
