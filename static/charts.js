// uPlot as this page uses it. A canvas says nothing to a screen reader, so each chart is an image with a name, and what
// it shows is in words or figures beside it.

import { h } from "/static/dom.js";
import { number, UNKNOWN } from "/static/words.js";

const KEPT_S = 300;
const LEAST_S = 60; // shown; it grows to all that is kept
const SPARK_HEIGHT = 30;
const CHART_HEIGHT = 190;

const { uPlot } = globalThis;
const drawn = new Set();
const colours = new Map();

/** What a custom property of the style sheet stands for now. */
function colour(name) {
  if (!colours.has(name)) {
    const probe = h("i", { class: `ink-${name}` });
    document.body.append(probe);
    colours.set(name, getComputedStyle(probe).color);
    probe.remove();
  }
  return colours.get(name);
}

const faint = (name) => colour(name).replace("rgb(", "rgba(").replace(")", ", 0.14)");

function repaint() {
  colours.clear();
  drawn.forEach((plot) => plot.redraw(false));
}
addEventListener("theme", repaint);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

const sizes = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const { plot } = target;
    if (plot && contentRect.width > 0) plot.setSize({ width: Math.floor(contentRect.width), height: plot.height });
  }
});

function draw(host, options, data) {
  const common = { width: Math.floor(host.clientWidth) || 100, cursor: { show: false }, legend: { show: false } };
  host.plot = new uPlot({ ...common, ...options }, data, host);
  drawn.add(host.plot);
  sizes.observe(host);
  return host.plot;
}

/** The last five minutes of one figure. */
export class Spark {
  #times = [];
  #values = [];
  #plot = null;

  /** `most`: the top of the scale; null: what was highest. */
  constructor(most = null) {
    this.node = h("div", { class: "spark", "aria-hidden": "true" });
    this.most = most;
  }

  add(time_s, value) {
    this.#times.push(time_s);
    this.#values.push(value ?? null);
    while (this.#times[0] < time_s - KEPT_S) {
      this.#times.shift();
      this.#values.shift();
    }
    if (!this.node.isConnected) return;
    this.#plot ??= draw(this.node, this.#options(), [[], []]);
    this.#plot.setData([this.#times, this.#values]);
  }

  #options() {
    const ink = { stroke: () => colour("accent"), fill: () => faint("accent"), width: 1.5, points: { show: false } };
    const shown_s = () => [Math.min(this.#times[0], this.#times.at(-1) - LEAST_S), this.#times.at(-1)];
    const heights = (_, low, high) => [0, this.most ?? Math.max(1, high * 1.1)];
    return {
      height: SPARK_HEIGHT,
      padding: [2, 0, 0, 0],
      axes: [{ show: false }, { show: false }],
      scales: { x: { range: shown_s }, y: { range: heights } },
      series: [{}, ink],
    };
  }
}

/** Lines or bars over time. `series`: {label, ink, bars, dash, unit, digits}; `readout` says what is at the pointer. */
export class Chart {
  #half = 0; // of a bar

  constructor(title, series) {
    this.series = series;
    this.readout = h("span", { class: "quiet" });
    this.image = h("div", { class: "chart", role: "img", "aria-label": title });
    const keys = h("p", { class: "keys" }, series.map(({ label, ink, dash }) =>
      h("span", { class: `key ink-${ink}`, data: { dash: dash ? "yes" : "no" } }, label)));
    this.node = h("figure", {}, h("figcaption", {}, title), this.image, keys, this.readout);
    this.plot = null;
  }

  /** `data`: seconds since 1970, then an array for each series; `said`: the same in a sentence. */
  show(data, said) {
    this.image.setAttribute("aria-label", said);
    this.#half = this.series.some(({ bars }) => bars) ? (data[0][1] - data[0][0]) / 2 : 0;
    this.plot ??= draw(this.image, this.#options(), data);
    this.plot.setData(data);
  }

  #options() {
    const shown_s = (_, first, last) => [first - this.#half, last + this.#half];
    const heights = (_, low, high) => [0, Math.max(1, (high ?? 1) * 1.1)];
    return {
      height: CHART_HEIGHT,
      cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
      hooks: { setCursor: [(plot) => this.#point(plot.cursor.idx)] },
      scales: { x: { range: shown_s }, y: { range: heights } },
      axes: [axis({ space: 60, size: 24, values: clockTimes }), axis({ size: 40, space: 34 })],
      series: [{}, ...this.series.map(line)],
    };
  }

  #point(index) {
    const time = this.plot?.data[0][index];
    if (time === undefined) return;
    const said = this.series.map(({ label, unit, digits = 0 }, i) => {
      const value = this.plot.data[i + 1][index];
      return `${label} ${value === null ? UNKNOWN : `${number(value, digits)}${unit ? ` ${unit}` : ""}`}`;
    });
    this.readout.textContent = [minute(new Date(time * 1000)), ...said].join(" · ");
  }
}

const minute = uPlot.fmtDate("{HH}:{mm}");
const clockTimes = (_, times) => times.map((time) => minute(new Date(time * 1000)));

function axis(more) {
  return {
    stroke: () => colour("quiet"),
    font: "11px system-ui, sans-serif",
    grid: { stroke: () => colour("line"), width: 1 },
    ticks: { show: false },
    ...more,
  };
}

function line({ label, ink, bars, dash }) {
  return {
    label,
    stroke: () => colour(ink),
    fill: bars ? () => colour(ink) : undefined,
    paths: bars ? uPlot.paths.bars({ size: [0.7, 24] }) : undefined,
    points: { show: !bars, size: 4, fill: () => colour(ink) },
    width: bars ? 0 : 1.75,
    dash: dash ? [5, 4] : undefined,
    spanGaps: false,
  };
}
