// Lines of events per second. Python sends counts (views/live/rates.py); counts.js keeps them.
//
// The picture follows what comes, until somebody looks back: moves or zooms in time. Then it stays where it is, and what
// comes is kept meanwhile. Times are UTC, as in a DataFrame.

import uPlot from "uplot";
import uplotCss from "uplot/dist/uPlot.min.css";
import { element } from "../element.js";
import { Rates } from "./counts.js";
import css from "./rates.css";

const HEIGHT = 205;
const IN_TIP = 12; // lines
const DASHES = [[], [6, 4], [2, 3]]; // a round of colours each
const LOG = { distr: 100, fwd: (rate) => Math.log10(1 + rate), bwd: (at) => 10 ** at - 1 }; // it has a place for 0
const KEYS = { ArrowLeft: "back", ArrowRight: "forth", "+": "in", "=": "in", "-": "out", End: "live", Escape: "live" };

export function rates(root, page) {
  const view = new RatesView(root, page);
  return {
    whole: (header, buffers) => view.whole(header, buffers),
    delta: (header, buffers) => view.delta(header, buffers),
    resize: (width) => view.resize(width),
    destroy: () => view.destroy(),
  };
}

class RatesView {
  constructor(root, page) {
    this.page = page;
    this.data = new Rates();
    this.hidden = new Set(); // ids of lines
    this.held = null; // the range that is looked back at, in seconds
    this.brushed = null;
    this.log = false;
    this.at = null; // the place of the cursor among the intervals shown
    this.width = 0;
    this.root = element("div", "bpfnb-rates", root);
    element("style", "", this.root).textContent = uplotCss + css;
    this.buildTools();
    this.chart = element("div", "bpfnb-rt-chart", this.root);
    this.unit = element("div", "bpfnb-rt-unit", this.chart);
    this.empty = element("span", "", element("div", "bpfnb-rt-empty", this.chart));
    this.zone = element("div", "bpfnb-rt-zone", this.chart);
    this.zone.textContent = "UTC";
    this.tip = element("div", "bpfnb-rt-tip", this.chart);
    this.tip.hidden = true;
    this.legend = element("div", "bpfnb-rt-legend", this.root);
    this.remark = element("div", "bpfnb-rt-remark", this.root);
    this.remark.setAttribute("role", "status");
    this.chart.tabIndex = 0;
    this.chart.setAttribute("role", "img");
    this.chart.addEventListener("keydown", (event) => this.key(event));
    this.chart.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  // --- what comes ---------------------------------------------------------------------------------------------------

  whole(header, buffers) {
    this.data.whole(header, buffers);
    this.theme = this.page.theme();
    this.fillTools();
    this.plot?.destroy();
    this.plot = null;
    this.draw();
  }

  delta(header, buffers) {
    if ("step" in header) return this.whole(header, buffers);
    this.data.delta(header, buffers);
    this.draw();
  }

  resize(width) {
    this.width = Math.floor(width);
    if (!this.plot) return this.draw();
    if (this.plot.width !== this.width) this.plot.setSize({ width: this.width, height: HEIGHT });
  }

  destroy() {
    this.plot?.destroy();
    this.plot = null;
    this.root.remove();
  }

  // --- the picture --------------------------------------------------------------------------------------------------

  // The range of time shown, in seconds.
  range() {
    if (this.held) return this.held;
    const end = this.data.until * this.data.step;
    return [end - this.data.window, end];
  }

  draw() {
    if (!this.width || !this.data.sources) return;
    const { data } = this;
    this.lines = [...data.lines];
    if (data.by) this.lines.push({ label: "other", id: "other", other: true });
    this.fill();
    if (!this.plot) this.make();
    while (this.plot.series.length <= this.lines.length) this.plot.addSeries(this.series(this.plot.series.length - 1));
    this.plot.series.forEach((series, i) => {
      if (i === 0) return;
      const line = this.lines[i - 1];
      series.dash = line ? this.dash(line) : [];
      series.show = Boolean(line) && !this.hidden.has(line.id);
    });
    this.plot.setData(this.columns(), false);
    this.plot.redraw(true, true);
    const [min, max] = this.range();
    this.plot.setScale("x", { min, max });
    this.say();
    this.showLegend();
    this.showTip();
  }

  // Work out the values of the intervals shown, and of one on either side.
  fill() {
    const { step, until } = this.data;
    const [min, max] = this.range();
    const first = Math.max(Math.floor(min / step) - 1, this.data.oldest - 1);
    const end = Math.min(Math.ceil(max / step) + 1, until);
    this.numbers = [];
    this.values = this.lines.map(() => []);
    for (let number = first; number < end; number++) {
      this.numbers.push(number);
      this.data.rates(number).forEach((rate, i) => this.values[i].push(rate));
    }
    // "other" has a line only where there is something in it.
    const last = this.lines.length - 1;
    if (this.lines[last]?.other && !this.values[last].some((rate) => rate > 0)) {
      this.lines.pop();
      this.values.pop();
    }
  }

  columns() {
    const { step } = this.data;
    const middles = this.numbers.map((number) => (number + 0.5) * step);
    const none = middles.map(() => null);
    const spare = Math.max((this.plot?.series.length ?? 0) - 1 - this.values.length, 0);
    return [middles, ...this.values, ...Array.from({ length: spare }, () => none)];
  }

  make() {
    const { muted, line } = this.theme;
    const grid = { stroke: line, width: 1 };
    const font = `11px ${getComputedStyle(this.root).fontFamily}`;
    const axis = { stroke: muted, font, ticks: { ...grid, size: 4 } };
    const options = {
      width: this.width,
      height: HEIGHT,
      padding: [18, 30, 0, 0], // on the right half a time of day
      legend: { show: false },
      scales: {
        x: { time: true, range: () => this.range() },
        y: this.log
          ? { ...LOG, range: (_, __, max) => [0, 10 ** Math.ceil(Math.log10(Math.max(max, 1) + 1))] }
          : { range: (_, __, max) => [0, max > 0 ? max * 1.08 : 1] },
      },
      axes: [
        { ...axis, grid: { show: false }, size: 26, space: 80, values: times },
        { ...axis, grid, size: 48, space: 34, values: (_, splits) => splits.map(short), ...(this.log && DECADES) },
      ],
      series: [{}, ...this.lines.map((_, i) => this.series(i))],
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
      focus: { alpha: 0.3 },
      cursor: {
        y: false,
        points: { size: 6 },
        focus: { prox: 16 },
        drag: { x: true, y: false, setScale: false, dist: 5 },
        bind: { dblclick: () => () => this.move("live") },
      },
      hooks: {
        setCursor: [(plot) => this.point(plot.cursor.idx)],
        setSelect: [(plot) => this.select(plot)],
        drawClear: [(plot) => this.shade(plot)],
      },
    };
    this.plot = new uPlot(options, this.columns(), this.chart);
  }

  series(i) {
    return {
      stroke: () => (this.lines[i] ? this.colour(this.lines[i]) : "transparent"),
      fill: () => (this.lines.length === 1 && i === 0 ? this.colour(this.lines[0]) + "22" : null),
      width: 1.6,
      spanGaps: false,
      points: { show: (plot, at, from, to) => to - from < 3, size: 5 },
    };
  }

  colour({ other, slot }) {
    return other ? this.theme.other ?? this.theme.muted : this.theme.series[slot % this.theme.series.length];
  }

  dash({ other, slot }) {
    return other ? [] : DASHES[Math.floor(slot / this.theme.series.length) % DASHES.length];
  }

  // Draw the range that was brushed, behind the lines.
  shade(plot) {
    if (!this.brushed) return;
    const [left, right] = this.brushed.map((time) => plot.valToPos(time, "x", true));
    const { ctx, bbox } = plot;
    const begin = Math.max(left, bbox.left);
    const end = Math.min(right, bbox.left + bbox.width);
    if (end <= begin) return;
    ctx.save();
    ctx.fillStyle = getComputedStyle(this.chart).getPropertyValue("--bpfnb-focus") || this.theme.muted;
    ctx.globalAlpha = 0.13;
    ctx.fillRect(begin, bbox.top, end - begin, bbox.height);
    ctx.restore();
  }

  // Say in one line what the picture does not show.
  say() {
    const { sources, by, step, totals } = this.data;
    this.unit.textContent = step === 1 ? "events per second" : `events per second, in intervals of ${step} s`;
    const none = sources.every((source) => source.oldest === null);
    const quiet = !this.values.some((values) => values.some((rate) => rate > 0));
    const ended = sources.every((source) => source.until !== null);
    this.empty.textContent = !quiet
      ? ""
      : totals.some((track) => track.data.some((count) => count > 0))
        ? "no events in this time"
        : ended ? "no events" : "no events yet";
    this.zone.hidden = none;
    const outside = sources.reduce((sum, source) => sum + source.outside, 0);
    const said = [];
    if (outside) said.push(`${outside.toLocaleString("en")} rows have times that are not within what is kept`);
    if (sources.some((source) => source.gaps.length)) said.push("gaps: rows were dropped before they were counted");
    if (by && sources.some((source) => source.rounded)) said.push(`there are so many values of ${by} that rare ones count as other`);
    this.remark.textContent = said.join("; ");
    const [from, to] = this.range();
    const names = this.lines.map((line) => line.label).join(", ");
    this.chart.setAttribute("aria-label", `events per second of ${names}, ${clock(from)} to ${clock(to)} UTC`);
  }

  // --- legend and tip -----------------------------------------------------------------------------------------------

  showLegend() {
    const at = this.at ?? this.newest();
    while (this.legend.children.length > this.lines.length) this.legend.lastChild.remove();
    this.lines.forEach((line, i) => {
      const made = this.legend.children[i] ?? this.entryButton(i);
      fillEntry(made.firstChild, this.mark(line), line.label, value(this.values[i][at]));
      made.setAttribute("aria-pressed", String(!this.hidden.has(line.id)));
    });
  }

  entryButton(i) {
    const made = element("button", "", this.legend);
    made.type = "button";
    entry(made);
    made.addEventListener("click", () => this.toggle(i));
    made.addEventListener("pointerenter", () => this.plot?.setSeries(i + 1, { focus: true }));
    made.addEventListener("pointerleave", () => this.plot?.setSeries(null, { focus: true }));
    return made;
  }

  toggle(i) {
    const { id } = this.lines[i];
    this.hidden.has(id) ? this.hidden.delete(id) : this.hidden.add(id);
    this.draw();
  }

  mark(line) {
    return { colour: this.colour(line), dash: this.dash(line) };
  }

  newest() {
    let at = this.numbers.length - 1;
    while (at > 0 && this.values.every((values) => values[at] === null)) at--;
    return at;
  }

  point(at) {
    this.at = at ?? null;
    this.showLegend();
    this.showTip();
  }

  showTip() {
    const at = this.at;
    const number = this.numbers[at];
    if (at === null || number === undefined || !this.plot) {
      this.tip.hidden = true;
      return;
    }
    const { step } = this.data;
    const shown = this.lines
      .map((line, i) => ({ line, rate: this.values[i][at] }))
      .filter(({ line, rate }) => rate !== null && !this.hidden.has(line.id))
      .sort((a, b) => b.rate - a.rate);
    const time = element("div", "bpfnb-rt-tip-time");
    time.textContent = `${clock(number * step)} to ${clock((number + 1) * step)} UTC`;
    const rows = shown.slice(0, IN_TIP).map(({ line, rate }) => {
      const row = entry();
      fillEntry(row, this.mark(line), line.label, value(rate));
      return row;
    });
    if (shown.length > IN_TIP) {
      const more = element("div", "bpfnb-rt-tip-time");
      more.textContent = `and ${shown.length - IN_TIP} more`;
      rows.push(more);
    }
    if (!shown.length) {
      const none = element("div", "bpfnb-rt-tip-time");
      none.textContent = "not traced";
      rows.push(none);
    }
    this.tip.replaceChildren(time, ...rows);
    this.tip.hidden = false;
    const left = this.plot.valToPos((number + 0.5) * step, "x") + this.plot.over.offsetLeft;
    const right = left + 14 + this.tip.offsetWidth < this.width;
    this.tip.style.left = right ? `${left + 12}px` : `${Math.max(left - 12 - this.tip.offsetWidth, 0)}px`;
  }

  // --- choices ------------------------------------------------------------------------------------------------------

  buildTools() {
    const tools = element("div", "bpfnb-rt-tools", this.root);
    this.choices = {
      window: select(tools, "last", (chosen) => this.choose({ window: Number(chosen) })),
      by: select(tools, "by", (chosen) => this.choose({ by: chosen || null })),
      top: select(tools, "top", (chosen) => this.choose({ top: Number(chosen) })),
    };
    this.scale = button(tools, "log", "logarithmic scale", () => {
      this.log = !this.log;
      this.scale.setAttribute("aria-pressed", String(this.log));
      this.plot?.destroy();
      this.plot = null;
      this.draw();
    });
    this.scale.setAttribute("aria-pressed", "false");
    this.chip = element("span", "bpfnb-rt-range", tools);
    this.chip.setAttribute("role", "status");
    const moves = element("span", "bpfnb-rt-moves", tools);
    button(moves, "\u2039", "look back (left arrow)", () => this.move("back"));
    button(moves, "\u203a", "forward (right arrow)", () => this.move("forth"));
    button(moves, "+", "zoom in (+, or Ctrl and wheel)", () => this.move("in"));
    button(moves, "\u2212", "zoom out (-)", () => this.move("out"));
    this.follow = button(moves, "Now", "follow what comes (Esc)", () => this.move("live"));
    this.follow.disabled = true;
  }

  fillTools() {
    const { windows, window, columns, by, top, most } = this.data;
    const tops = [...new Set([3, 5, 10, most, top])].filter((n) => n <= most).sort((a, b) => a - b);
    const spans = [...new Set([...windows, window])].sort((a, b) => a - b);
    options(this.choices.window, spans.map((s) => [s, span(s)]), window);
    options(this.choices.by, [["", this.data.many ? "output" : "nothing"], ...columns.map((name) => [name, name])], by ?? "");
    options(this.choices.top, tops.map((n) => [n, String(n)]), top);
    this.choices.top.parentElement.hidden = !by;
  }

  choose(choices) {
    this.held = null;
    this.page.choose(choices);
  }

  // --- looking back -------------------------------------------------------------------------------------------------

  key(event) {
    const move = KEYS[event.key];
    if (!move || event.target !== this.chart || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.move(move);
  }

  wheel(event) {
    if (!this.plot) return;
    const zooms = event.ctrlKey || event.metaKey;
    const across = event.shiftKey ? event.deltaY || event.deltaX : Math.abs(event.deltaX) > Math.abs(event.deltaY) ? event.deltaX : 0;
    if (!zooms && !across) return; // the page scrolls
    event.preventDefault();
    const [min, max] = this.range();
    if (zooms) {
      const at = this.plot.posToVal(event.clientX - this.plot.over.getBoundingClientRect().left, "x");
      const factor = Math.exp(Math.max(-1, Math.min(1, event.deltaY / 200)));
      this.hold(at - (at - min) * factor, at + (max - at) * factor);
    } else {
      const by = (across / this.plot.over.clientWidth) * (max - min);
      this.hold(min + by, max + by);
    }
  }

  move(how) {
    const [min, max] = this.range();
    const half = (max - min) / 2;
    if (how === "back") this.hold(min - half, max - half);
    else if (how === "forth") this.hold(min + half, max + half);
    else if (how === "in") this.hold(min + half / 2, max - half / 2);
    else if (how === "out") this.hold(min - half, max + half);
    else this.hold(-Infinity, Infinity, true);
  }

  // Look at a range, within what is kept; at its end the picture follows again.
  hold(min, max, live = false) {
    const { step, oldest, until, window } = this.data;
    const [first, end] = [Math.min(oldest * step, until * step - window), until * step];
    let length = Math.min(Math.max(max - min, 5 * step), end - first);
    let begin = Math.max(Math.min(min, end - length), first);
    if (max - min < 5 * step) begin = Math.max(first, Math.min((min + max) / 2 - length / 2, end - length));
    const follows = live || (begin + length >= end - step / 2 && Math.abs(length - window) < step);
    this.held = follows ? null : [begin, begin + length];
    this.follow.disabled = follows;
    this.follow.setAttribute("aria-pressed", String(!follows));
    this.draw();
  }

  // --- brushing -----------------------------------------------------------------------------------------------------

  select(plot) {
    const { left, width } = plot.select;
    if (width <= 0) return;
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    const { step } = this.data;
    // Whole intervals: what the picture shows of them is what is in the table.
    const from = Math.round(plot.posToVal(left, "x") / step);
    const to = Math.max(Math.round(plot.posToVal(left + width, "x") / step), from + 1);
    this.brush([from * step, to * step]);
  }

  brush(range) {
    this.brushed = range;
    this.page.brush(...(range ?? [0, 0]));
    this.chip.replaceChildren();
    if (range) {
      const text = element("span", "", this.chip);
      text.textContent = `${clock(range[0])} to ${clock(range[1])} in panel.df`;
      button(this.chip, "zoom", "show this time", () => this.hold(...range));
      button(this.chip, "\u00d7", "no selection", () => this.brush(null));
    }
    this.plot?.redraw(false);
  }
}

// --- pieces ---------------------------------------------------------------------------------------------------------

function button(parent, text, title, pressed) {
  const made = element("button", "", parent);
  made.type = "button";
  made.textContent = text;
  made.title = title;
  made.setAttribute("aria-label", title);
  made.addEventListener("click", pressed);
  return made;
}

function select(parent, text, chosen) {
  const label = element("label", "", parent);
  element("span", "", label).textContent = text;
  const made = element("select", "", label);
  made.addEventListener("change", () => chosen(made.value));
  return made;
}

function options(made, pairs, chosen) {
  made.replaceChildren(
    ...pairs.map(([value, text]) => {
      const option = element("option");
      option.value = value;
      option.textContent = text;
      option.selected = value === chosen;
      return option;
    }),
  );
}

// A line's mark, name and value.
function entry(parent) {
  const made = element("span", "bpfnb-rt-entry", parent);
  const svg = made.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "svg"));
  svg.setAttribute("viewBox", "0 0 16 4");
  svg.setAttribute("aria-hidden", "true");
  const path = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  path.setAttribute("d", "M0 2h16");
  path.setAttribute("stroke-width", "2.5");
  element("span", "bpfnb-rt-entry-name", made);
  element("span", "bpfnb-rt-entry-value", made);
  return made;
}

function fillEntry(made, { colour, dash }, name, text) {
  const [svg, label, number] = made.children;
  svg.firstChild.setAttribute("stroke", colour);
  svg.firstChild.setAttribute("stroke-dasharray", dash.map((n) => n / 1.5).join(" "));
  if (label.textContent !== name) label.textContent = label.title = name;
  number.textContent = text;
}

// Times of day below the picture, but for one that would be where "UTC" is.
function times(plot, splits) {
  return splits.map((seconds) => (plot.valToPos(seconds, "x") < 12 ? "" : clock(seconds)));
}

function clock(seconds) {
  const text = new Date(Math.round(seconds * 1000)).toISOString();
  return text.slice(11, text.endsWith(".000Z") ? 19 : 21);
}

// A rate as a number: 0, 0.25, 950, 1,234, 1.23M.
function value(rate) {
  if (rate === null || rate === undefined) return "\u2013";
  if (rate < 100) return String(Math.round(rate * 100) / 100);
  return rate < 1e6 ? Math.round(rate).toLocaleString("en") : short(rate);
}

// 0, 1, 10, 100, ... of a logarithmic scale. uPlot's own filter drops the 0.
const DECADES = { splits: decades, filter: (_, splits) => splits };

function decades(plot, _, __, max) {
  const found = [0];
  for (let rate = 1; rate <= max; rate *= 10) found.push(rate);
  return found;
}

function short(number) {
  if (number === null) return "";
  const power = Math.abs(number) < 1000 ? 0 : Math.min(Math.floor(Math.log10(Math.abs(number)) / 3), 4);
  return `${Number((number / 1000 ** power).toPrecision(3))}${["", "k", "M", "G", "T"][power]}`;
}

function span(seconds) {
  return seconds < 60 ? `${seconds} s` : seconds < 3600 ? `${Number((seconds / 60).toPrecision(3))} min` : `${seconds / 3600} h`;
}
