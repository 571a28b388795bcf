// Histograms: bars over buckets, one picture for each group. See views/live/counts/hist.py for what comes.

import { element } from "../element.js";
import { Choices, bucket, edge, everyEdge, fit, place, remarks, short, steps, toggle, whole } from "./tools.js";

const [TALL, SMALL] = [205, 128]; // heights of one histogram, and of one of many
const [LEFT, BOTTOM, TOP, RIGHT] = [44, 18, 8, 12];
const LEAST = 260; // width of one of many
const WIDEST = 84; // of a bar

export function hist(root, page) {
  const view = new HistView(root, page);
  return {
    whole: (header, buffers) => view.whole(header, buffers),
    delta: (header, buffers) => view.delta(header, buffers),
    resize: (width) => view.resize(width),
    destroy: () => view.root.remove(),
  };
}

class HistView {
  constructor(root, page) {
    this.page = page;
    this.log = false;
    this.width = 0;
    this.root = place(root, "");
    const tools = element("div", "bpfnb-tools", this.root);
    this.choices = new Choices(tools, page, true);
    toggle(tools, "log", "logarithmic scale of counts", (on) => {
      this.log = on;
      this.draw();
    });
    this.all = element("div", "bpfnb-hists", this.root);
    this.none = element("div", "bpfnb-none", this.root);
    this.remark = element("div", "bpfnb-remark", this.root);
    this.remark.setAttribute("role", "status");
    this.tip = element("div", "bpfnb-tip", this.root);
    this.tip.hidden = true;
    this.cells = [];
    this.root.addEventListener("keydown", (event) => event.key === "Escape" && this.leave());
  }

  whole(header, buffers) {
    this.data = header;
    this.theme = this.page.theme();
    this.width ||= Math.floor(this.root.clientWidth);
    this.choices.show(header);
    this.take(buffers);
  }

  delta(header, buffers) {
    if (!this.data) return;
    Object.assign(this.data, header);
    this.take(buffers);
  }

  take([buffer]) {
    const { groups, low } = this.data;
    this.counts = groups.map((_, group) => low.map((_, at) => buffer.getFloat64(8 * (group * low.length + at), true)));
    this.draw();
  }

  resize(width) {
    this.width = Math.floor(width);
    this.draw();
  }

  draw() {
    if (!this.data || !this.width) return;
    const { groups, span, total } = this.data;
    const many = groups.length > 1;
    const across = many ? Math.max(1, Math.min(groups.length, Math.floor((this.width + 16) / (LEAST + 16)))) : 1;
    this.all.style.gridTemplateColumns = `repeat(${across}, minmax(0, 1fr))`;
    this.size = [Math.floor((this.width - 16 * (across - 1)) / across), many ? SMALL : TALL];
    while (this.cells.length > groups.length) this.cells.pop().root.remove();
    while (this.cells.length < groups.length) this.cells.push(this.cell(this.cells.length));
    groups.forEach((name, group) => this.drawCell(name, group));
    this.none.hidden = groups.length > 0;
    this.none.textContent = total ? `nothing in ${span}` : "nothing counted yet";
    this.remark.textContent = remarks(this.data);
    if (this.at) this.point(...this.at);
  }

  cell(group) {
    const root = element("div", "bpfnb-hist", this.all);
    const head = element("div", "bpfnb-hist-name", root);
    const made = { root, head, name: element("b", "", head), sum: element("span", "", head) };
    made.canvas = element("canvas", "", root);
    root.tabIndex = 0;
    root.setAttribute("role", "img");
    made.canvas.addEventListener("pointermove", (event) => {
      const { left } = made.canvas.getBoundingClientRect();
      this.point(group, Math.floor(((event.clientX - left - LEFT) / this.wide()) * this.data.low.length));
    });
    made.canvas.addEventListener("pointerleave", () => this.leave());
    root.addEventListener("blur", () => this.leave());
    root.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const at = this.at?.[0] === group ? this.at[1] + step : step > 0 ? 0 : this.data.low.length - 1;
      this.point(group, Math.max(0, Math.min(at, this.data.low.length - 1)));
    });
    return made;
  }

  drawCell(name, group) {
    const { low, high, unit, scale } = this.data;
    const { name: title, sum, canvas, root } = this.cells[group];
    const counts = this.counts[group];
    const all = counts.reduce((a, b) => a + b, 0);
    title.textContent = title.title = name;
    sum.textContent = `${whole(all)} in all`;
    const most = Math.max(...counts, 0);
    const at = counts.indexOf(most);
    const label = `histogram${name ? ` of ${name}` : ""}: ${whole(all)} in all`;
    root.setAttribute("aria-label", most ? `${label}, most in ${bucket(low[at], high[at], unit, scale)}: ${whole(most)}` : label);
    const [width, height] = this.size;
    const context = fit(canvas, width, height);
    const frame = { left: LEFT, top: TOP, width: this.wide(), height: height - TOP - BOTTOM };
    this.drawLevels(context, frame, most);
    this.drawBars(context, frame, counts, most, group);
    this.drawEdges(context, frame);
  }

  // The width of the buckets: of a few not the whole.
  wide() {
    return Math.min(this.size[0] - LEFT - RIGHT, Math.max(this.data.low.length, 1) * WIDEST);
  }

  share(count, most) {
    if (!this.log) return count / most;
    return count > 0 ? Math.log(count / 0.5) / Math.log(Math.max(most, 1) / 0.5) : 0;
  }

  drawLevels(context, { left, top, width, height }, most) {
    const { muted, line } = this.theme;
    const powers = Array.from({ length: Math.floor(Math.log10(Math.max(most, 1))) + 1 }, (_, i) => 10 ** i);
    const levels = this.log ? powers.filter((_, i) => i % Math.ceil(powers.length / 4) === 0) : steps(most, height > 120 ? 5 : 3);
    this.write(context, "right");
    for (const level of levels) {
      const y = Math.round(top + height * (1 - this.share(level, most || 1))) + 0.5;
      context.fillStyle = line;
      context.fillRect(left, y - 0.5, width, 1);
      context.fillStyle = muted;
      context.fillText(short(level), left - 6, y);
    }
  }

  drawBars(context, { left, top, width, height }, counts, most, group) {
    const each = width / counts.length;
    const gap = each > 6 ? 1 : 0;
    const other = this.data.groups.length > 1 && group === this.data.groups.length - 1 && this.data.groups[group].startsWith("other (");
    counts.forEach((count, at) => {
      if (!count) return;
      const tall = Math.max(this.share(count, most) * height, 1);
      const lit = this.at?.[0] === group && this.at[1] === at;
      context.globalAlpha = lit ? 1 : 0.82;
      context.fillStyle = other ? this.theme.other ?? this.theme.muted : this.theme.series[0];
      context.fillRect(left + at * each + gap / 2, top + height - tall, Math.max(each - gap, 0.5), tall);
    });
    context.globalAlpha = 1;
    context.fillStyle = this.theme.line;
    context.fillRect(left, top + height, width, 1);
  }

  drawEdges(context, { left, top, width, height }) {
    const { low, high, unit, scale } = this.data;
    const each = width / Math.max(low.length, 1);
    const every = everyEdge(low.length, each, 46);
    this.write(context, "center");
    context.fillStyle = this.theme.muted;
    const first = low[0] === null ? 1 : 0;
    for (let at = first; at <= low.length; at += every) {
      const value = at < low.length ? low[at] : high[low.length - 1];
      if (value === null) continue;
      const x = Math.min(left + at * each, left + width - 2);
      context.fillRect(Math.round(x), top + height, 1, 4);
      context.fillText(edge(value, unit, scale), x, top + height + 12);
    }
  }

  write(context, align) {
    context.font = `11px ${getComputedStyle(this.root).fontFamily}`;
    context.textAlign = align;
    context.textBaseline = "middle";
  }

  point(group, at) {
    const { low, high, unit, scale, groups } = this.data;
    const counts = this.counts[group];
    if (!(at >= 0 && at < low.length) || !counts) return this.leave();
    const before = this.at;
    this.at = [group, at];
    if (before?.[0] !== group || before[1] !== at) {
      if (before && before[0] !== group && this.counts[before[0]]) this.drawCell(groups[before[0]], before[0]);
      this.drawCell(groups[group], group);
    }
    const all = counts.reduce((a, b) => a + b, 0);
    this.tip.replaceChildren(bucket(low[at], high[at], unit, scale), element("small"));
    const share = all ? `${Number(((100 * counts[at]) / all).toPrecision(3))} %` : "0 %";
    this.tip.lastChild.textContent = `${whole(counts[at])}, ${share}`;
    this.tip.hidden = false;
    const { canvas } = this.cells[group];
    const [mine, own] = [this.root.getBoundingClientRect(), canvas.getBoundingClientRect()];
    const x = own.left - mine.left + LEFT + ((at + 0.5) * this.wide()) / low.length;
    const right = x + 12 + this.tip.offsetWidth < this.width;
    this.tip.style.left = `${right ? x + 12 : Math.max(x - 12 - this.tip.offsetWidth, 0)}px`;
    this.tip.style.top = `${own.top - mine.top + 4}px`;
  }

  leave() {
    const before = this.at;
    this.at = null;
    this.tip.hidden = true;
    if (before && this.counts[before[0]]) this.drawCell(this.data.groups[before[0]], before[0]);
  }
}
