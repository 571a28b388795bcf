// A heat map: time on x, buckets on y, counts as colours. See views/live/counts/heatmap.py for what comes.

import { element } from "../element.js";
import { Choices, bucket, clock, edge, everyEdge, fit, place, remarks, select, toggle, whole } from "./tools.js";

const HEIGHT = 215;
const [LEFT, BOTTOM, TOP, RIGHT] = [52, 20, 6, 8];
const LEVELS = 64; // different colours

export function heatmap(root, page) {
  const view = new HeatView(root, page);
  return {
    whole: (header, buffers) => view.whole(header, buffers),
    delta: (header, buffers) => view.delta(header, buffers),
    resize: (width) => view.resize(width),
    destroy: () => view.root.remove(),
  };
}

class HeatView {
  constructor(root, page) {
    this.page = page;
    this.width = 0;
    this.log = false;
    this.brushed = this.dragged = this.at = null;
    this.root = place(root, "");
    const tools = element("div", "bpfnb-tools", this.root);
    this.choices = new Choices(tools, page, false);
    this.group = select(tools, "only", (value) => page.choose({ group: value === "" ? null : this.data.groups[Number(value)] }));
    toggle(tools, "log", "logarithmic scale of colours", (on) => {
      this.log = on;
      this.draw();
    });
    this.heat = element("div", "bpfnb-heat", this.root);
    this.heat.tabIndex = 0;
    this.heat.setAttribute("role", "img");
    this.canvas = element("canvas", "", this.heat);
    this.tip = element("div", "bpfnb-tip", this.heat);
    this.tip.hidden = true;
    this.key = element("div", "bpfnb-heat-key", this.root);
    this.zero = element("span", "", this.key);
    this.bar = element("i", "", this.key);
    this.most = element("span", "", this.key);
    this.range = element("span", "bpfnb-range", this.key);
    this.remark = element("div", "bpfnb-remark", this.root);
    this.remark.setAttribute("role", "status");
    this.listen();
  }

  // --- what comes ---------------------------------------------------------------------------------------------------

  whole(header, buffers) {
    this.data = { ...header };
    this.theme = this.page.theme();
    this.width ||= Math.floor(this.root.clientWidth);
    this.choices.show(header);
    const chosen = header.groups.indexOf(header.group);
    this.group.show([["", "all groups"], ...header.groups.map((name, i) => [String(i), name])], chosen < 0 ? "" : String(chosen));
    this.columns = [];
    this.take(header, buffers);
  }

  delta(header, buffers) {
    if (!this.data) return;
    this.take(header, buffers);
  }

  take(header, [buffer]) {
    const { begin, step, first } = header;
    const kept = first ? this.columns.slice((begin - this.data.begin) / step).slice(0, first) : [];
    Object.assign(this.data, header);
    const rows = this.data.low.length;
    for (let at = 0; at < header.intervals - first; at++) {
      const column = new Uint32Array(rows);
      for (let row = 0; row < rows; row++) column[row] = buffer.getUint32(4 * (at * rows + row), true);
      kept.push(column);
    }
    this.columns = kept;
    this.draw();
  }

  resize(width) {
    this.width = Math.floor(width);
    this.draw();
  }

  // --- the picture --------------------------------------------------------------------------------------------------

  draw() {
    if (!this.data || !this.width) return;
    const { low, begin, step, intervals } = this.data;
    this.peak = this.columns.reduce((most, column) => column.reduce((a, b) => (a > b ? a : b), most), 0);
    this.colours = ramp(this.theme.series);
    const frame = (this.frame = { left: LEFT, top: TOP, width: this.width - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM });
    const context = fit(this.canvas, this.width, HEIGHT);
    this.drawCells(context, frame);
    this.drawBuckets(context, frame);
    this.drawTimes(context, frame);
    this.drawRange(context, frame);
    this.explain();
    this.remark.textContent = remarks(this.data);
    const end = begin + step * intervals;
    const all = this.columns.reduce((sum, column) => column.reduce((a, b) => a + b, sum), 0);
    this.heat.setAttribute("aria-label", `heat map, ${clock(begin)} to ${clock(end)} UTC: ${whole(all)} in ${low.length} buckets`);
    if (this.at) this.point(this.at.x, this.at.y);
  }

  level(count) {
    if (!count || !this.peak) return 0;
    return this.log ? Math.log1p(count) / Math.log1p(this.peak) : Math.sqrt(count / this.peak);
  }

  drawCells(context, { left, top, width, height }) {
    const rows = this.data.low.length;
    const [wide, tall] = [width / this.columns.length, height / Math.max(rows, 1)];
    this.columns.forEach((column, at) => {
      // Whole pixels: no seams between cells.
      const [x, end] = [Math.round(left + at * wide), Math.round(left + (at + 1) * wide)];
      column.forEach((count, row) => {
        if (!count) return;
        const [y, below] = [Math.round(top + height - (row + 1) * tall), Math.round(top + height - row * tall)];
        context.fillStyle = this.colours[Math.max(1, Math.round(this.level(count) * LEVELS))];
        context.fillRect(x, y, Math.max(end - x, 1), Math.max(below - y, 1));
      });
    });
    context.fillStyle = this.theme.line;
    context.fillRect(left, top + height, width, 1);
    context.fillRect(left - 1, top, 1, height + 1);
    if (!this.peak) {
      this.write(context, "center");
      context.fillStyle = this.theme.muted;
      context.fillText(this.data.total ? "nothing in this time" : "nothing counted yet", left + width / 2, top + height / 2);
    }
  }

  drawBuckets(context, { left, top, height }) {
    const { low, high, unit, scale } = this.data;
    const tall = height / Math.max(low.length, 1);
    const every = everyEdge(low.length, tall, 20);
    this.write(context, "right");
    context.fillStyle = this.theme.muted;
    for (let at = low[0] === null ? 1 : 0; at <= low.length && low.length; at += every) {
      const value = at < low.length ? low[at] : high[low.length - 1];
      if (value === null) continue;
      const y = top + height - at * tall;
      context.fillRect(left - 5, Math.round(y), 4, 1);
      context.fillText(edge(value, unit, scale), left - 8, Math.max(y, top + 5));
    }
  }

  drawTimes(context, { left, top, width, height }) {
    const { begin, step, intervals } = this.data;
    const seconds = step * intervals;
    const space = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600].find((every) => (every / seconds) * width >= 70) ?? 3600;
    this.write(context, "center");
    context.fillStyle = this.theme.muted;
    for (let time = Math.ceil(begin / space) * space; time <= begin + seconds; time += space) {
      const x = left + ((time - begin) / seconds) * width;
      context.fillRect(Math.round(x), top + height, 1, 4);
      if (x > left + 18 && x < left + width - 22) context.fillText(clock(time), x, top + height + 13);
    }
    context.textAlign = "left";
    context.fillText("UTC", 4, top + height + 13);
  }

  drawRange(context, { left, top, width, height }) {
    const shown = this.dragged ?? this.brushed;
    if (!shown) return;
    const { begin, step, intervals } = this.data;
    const [from, to] = shown.map((time) => left + Math.min(Math.max((time - begin) / (step * intervals), 0), 1) * width);
    if (to <= from) return;
    context.fillStyle = getComputedStyle(this.heat).getPropertyValue("--bpfnb-focus") || this.theme.muted;
    context.globalAlpha = 0.18;
    context.fillRect(from, top, to - from, height);
    context.globalAlpha = 1;
    context.fillRect(from, top, 1, height);
    context.fillRect(to - 1, top, 1, height);
  }

  // Say what the colours mean.
  explain() {
    const stops = Array.from({ length: 9 }, (_, i) => this.colours[Math.max(1, Math.round((i / 8) * LEVELS))]);
    this.bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    this.zero.textContent = this.peak ? "1" : "0";
    const per = this.data.step === 1 ? "a second" : `in ${this.data.step} s`;
    this.most.textContent = `${whole(this.peak)} ${per}, ${this.log ? "logarithmic" : "square-root"} scale`;
  }

  write(context, align) {
    context.font = `11px ${getComputedStyle(this.root).fontFamily}`;
    context.textAlign = align;
    context.textBaseline = "middle";
  }

  // --- the mouse and the keys ---------------------------------------------------------------------------------------

  listen() {
    const { heat } = this;
    heat.addEventListener("pointerdown", (event) => {
      if (event.button || !this.frame) return;
      this.from = this.time(event);
      heat.setPointerCapture(event.pointerId);
    });
    heat.addEventListener("pointermove", (event) => {
      const { left, top } = this.canvas.getBoundingClientRect();
      this.point(event.clientX - left, event.clientY - top);
      if (this.from === undefined) return;
      const to = this.time(event);
      this.dragged = Math.abs(to - this.from) > 0 ? [Math.min(this.from, to), Math.max(this.from, to)] : null;
      this.draw();
    });
    heat.addEventListener("pointerup", () => this.drop());
    heat.addEventListener("pointercancel", () => this.drop());
    heat.addEventListener("pointerleave", () => this.leave());
    heat.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.brushed) return;
      event.stopPropagation();
      this.brush(null);
    });
  }

  // The time under the pointer: the nearest edge of an interval.
  time(event) {
    const { begin, step, intervals } = this.data;
    const { left, width } = this.frame;
    const share = (event.clientX - this.canvas.getBoundingClientRect().left - left) / width;
    return begin + step * Math.min(Math.max(Math.round(share * intervals), 0), intervals);
  }

  drop() {
    const range = this.dragged;
    this.from = undefined;
    this.dragged = null;
    if (range) this.brush(range);
  }

  brush(range) {
    this.brushed = range;
    this.page.brush(...(range ?? [0, 0]));
    this.range.replaceChildren();
    if (range) {
      element("span", "", this.range).textContent = `${clock(range[0])} to ${clock(range[1])} in panel.df`;
      const none = element("button", "", this.range);
      none.type = "button";
      none.textContent = "\u00d7";
      none.title = "no selection";
      none.setAttribute("aria-label", "no selection");
      none.addEventListener("click", () => this.brush(null));
    }
    this.draw();
  }

  point(x, y) {
    if (!this.frame) return;
    const { left, top, width, height } = this.frame;
    const { begin, step, low, high, unit, scale } = this.data;
    const column = Math.floor(((x - left) / width) * this.columns.length);
    const row = Math.floor(((top + height - y) / height) * low.length);
    const count = this.columns[column]?.[row];
    if (count === undefined) return this.leave();
    this.at = { x, y };
    const time = begin + column * step;
    this.tip.replaceChildren(`${bucket(low[row], high[row], unit, scale)}: ${whole(count)}`, element("small"));
    this.tip.lastChild.textContent = step === 1 ? `${clock(time)} UTC` : `${clock(time)} to ${clock(time + step)} UTC`;
    this.tip.hidden = false;
    const right = x + 14 + this.tip.offsetWidth < this.width;
    this.tip.style.left = `${right ? x + 12 : Math.max(x - 12 - this.tip.offsetWidth, 0)}px`;
    this.tip.style.top = `${Math.max(Math.min(y - 20, HEIGHT - 60), 0)}px`;
  }

  leave() {
    this.at = null;
    this.tip.hidden = true;
  }
}

// The colours of counts, as bpfnb/views/plots/style.py has them (HEAT): the page shines through what is little.
function ramp(series) {
  const [cold, hot] = [series[0], series[1]].map(rgb);
  return Array.from({ length: LEVELS + 1 }, (_, i) => {
    const place = i / LEVELS;
    const share = Math.max(0, (place - 0.5) * 2);
    const alpha = place < 0.5 ? 0.16 + (0.9 - 0.16) * place * 2 : 0.9 + 0.1 * share;
    const colour = cold.map((value, at) => Math.round(value + (hot[at] - value) * share));
    return `rgba(${colour.join(", ")}, ${alpha.toFixed(3)})`;
  });
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}
