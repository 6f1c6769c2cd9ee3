// The page: what is shown, and which members of the state each part is shown from.

import * as callbacks from "/static/callbacks.js";
import * as cards from "/static/cards.js";
import * as detail from "/static/detail.js";
import * as events from "/static/events.js";
import * as header from "/static/header.js";
import * as history from "/static/history.js";
import * as jobs from "/static/jobs.js";
import { Live } from "/static/live.js";
import * as models from "/static/models.js";
import * as tryit from "/static/tryit.js";

const PARTS = [
  [header.showState, ["health", "version", "uptime_s", "database", "queue", "workers", "models"]],
  [cards.showWorkers, ["workers", "telemetry", "paused_by_drain", "health"]],
  [jobs.showJobs, ["queue", "workers", "models"]],
  [models.showModels, ["models", "telemetry"]],
  [tryit.showChoices, ["models"]],
  [history.showHistory, ["queue", "telemetry"]],
  [callbacks.showCallbacks, ["callbacks"]],
  [events.showEvents, ["events"]],
];

const live = new Live();
const changed = new Set();
let due = false;

/** All that came since the last picture, in one go. */
function paint() {
  due = false;
  for (const [show, members] of PARTS) if (members.some((name) => changed.has(name))) show(live.state);
  changed.clear();
}

live.addEventListener("state", ({ detail: members }) => {
  members.forEach((name) => changed.add(name));
  if (!due) requestAnimationFrame(paint);
  due = true;
});
live.addEventListener("status", () => header.showConnection(live));

header.start(live);
for (const part of [cards, jobs, detail, history, events, tryit]) part.start();
live.start();
