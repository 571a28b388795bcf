// A tree drawn on a canvas: a row a level, a frame as wide as what was counted in it. The callers' row is above (icicle)
// or below (flame). What is narrower than half a pixel is not drawn.

import { element } from "../element.js";
import { changeStep, palette, shade } from "./palette.js";

export const ROW = 19;
const MOTION = 160; // ms
const LEAST = 0.5; // pixels
const TEXT = 26; // pixels, from which on a frame has its name
const PAD = 5;

export class Chart {
  // on: {hover(node, event), select(node), zoomed()}; dark(): whether the page is; still: no motion
  constructor(parent, on, dark, still, most = 460) {
    Object.assign(this, { on, dark, still, most, tree: null, inverted: false, found: null });
    this.focus = 0;
    this.window = [0, 1]; // what is shown, as shares of the whole
    this.root = element("div", "bpfnb-fl-chart", parent);
    this.space = element("div", "bpfnb-fl-space", this.root);
    this.canvas = element("canvas", "", this.space);
    this.canvas.setAttribute("aria-hidden", "true"); // the list beside it says the same
    this.mark = element("div", "bpfnb-fl-mark", this.space);
    this.ring = element("div", "bpfnb-fl-ring", this.space);
    this.mark.hidden = this.ring.hidden = true;
    this.selected = 0;
    this.rows = [];
    this.shades = [];
    this.frames = 0;
    this.root.addEventListener("scroll", () => this.draw(), { passive: true });
    this.root.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.canvas.addEventListener("mousemove", (event) => this.hover(event));
    this.canvas.addEventListener("mouseleave", () => this.leave());
    this.canvas.addEventListener("click", (event) => {
      const node = this.at(event);
      if (node >= 0) this.on.select(node);
    });
  }

  // --- what is shown ------------------------------------------------------------------------------------------------

  show(tree) {
    const fresh = this.tree !== tree;
    this.tree = tree;
    if (fresh) {
      this.focus = this.selected = 0;
      this.window = [0, 1];
    } else {
      while (this.focus && !tree.total[this.focus]) this.focus = tree.parent[this.focus];
      this.window = this.focus ? this.span(this.focus) : [0, 1];
    }
    this.leave();
    this.draw();
    if (fresh) this.toRoot();
  }

  invert(inverted) {
    this.inverted = inverted;
    this.draw();
    this.toRoot();
  }

  toRoot() {
    this.root.scrollTop = this.inverted ? this.root.scrollHeight : 0;
  }

  // Have a node fill the width.
  zoom(node, select = node) {
    this.focus = node;
    this.selected = select;
    this.leave();
    this.move(this.span(node));
    this.reveal(node);
    this.on.zoomed();
  }

  select(node) {
    this.selected = node;
    this.reveal(node);
    this.draw();
  }

  span(node) {
    const whole = this.tree.total[0] || 1;
    const start = this.tree.place(node);
    return [start / whole, (start + this.tree.total[node]) / whole];
  }

  move(to) {
    cancelAnimationFrame(this.moving);
    const from = this.window;
    if (this.still) return this.step(to);
    const begin = performance.now();
    const next = (now) => {
      const share = Math.min(1, (now - begin) / MOTION);
      const eased = 1 - (1 - share) ** 3;
      this.step(share < 1 ? [0, 1].map((i) => from[i] + (to[i] - from[i]) * eased) : to);
      if (share < 1) this.moving = requestAnimationFrame(next);
    };
    this.moving = requestAnimationFrame(next);
  }

  step(window) {
    this.window = window;
    this.draw();
  }

  // Ctrl or Meta and the wheel zoom, Shift and the wheel move along. The wheel alone is the page's.
  wheel(event) {
    const along = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    const closer = event.ctrlKey || event.metaKey;
    if ((!along && !closer) || !this.tree) return;
    event.preventDefault();
    cancelAnimationFrame(this.moving);
    let [from, to] = this.window;
    if (closer) {
      const at = from + (to - from) * (event.offsetX / this.canvas.clientWidth);
      const factor = Math.exp(Math.max(-1, Math.min(1, event.deltaY / 200)));
      if ((to - from) * factor < 1e-9) return;
      [from, to] = [at - (at - from) * factor, at + (to - at) * factor];
    } else {
      const by = ((event.deltaX || event.deltaY) / this.canvas.clientWidth) * (to - from);
      [from, to] = [from + by, to + by];
    }
    const width = Math.min(1, to - from);
    from = Math.max(0, Math.min(1 - width, from));
    this.window = [from, from + width];
    this.focus = this.covering();
    this.leave();
    this.draw();
    this.on.zoomed();
  }

  // The innermost node that fills the width.
  covering() {
    const { tree } = this;
    const [from, to] = this.window.map((share) => share * tree.total[0]);
    const little = tree.total[0] * 1e-12;
    for (let node = 0; ; ) {
      const inner = tree.of(node).find((c) => tree.start[c] <= from + little && tree.start[c] + tree.total[c] >= to - little);
      if (inner === undefined) return node;
      node = inner;
    }
  }

  reveal(node) {
    const y = this.y(this.tree.depth[node]);
    const { scrollTop, clientHeight } = this.root;
    if (y < scrollTop || y + ROW > scrollTop + clientHeight) this.root.scrollTop = y - clientHeight / 2;
  }

  y(depth) {
    return (this.inverted ? this.tree.deepest - depth : depth) * ROW;
  }

  // --- drawing ------------------------------------------------------------------------------------------------------

  draw() {
    const { tree, canvas } = this;
    const width = this.root.clientWidth;
    if (!tree || !width) return;
    this.frames++;
    const whole = (tree.deepest + 1) * ROW;
    const height = Math.min(whole, this.most);
    const scale = devicePixelRatio || 1;
    this.space.style.height = `${whole}px`;
    this.root.style.height = `${height}px`;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d", { alpha: true });
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const colours = palette(this.dark());
    const labels = this.lay(width, height, colours);
    for (const [colour, rectangles] of this.batches) {
      context.fillStyle = colour;
      for (let i = 0; i < rectangles.length; i += 3) {
        context.fillRect(rectangles[i], rectangles[i + 1], rectangles[i + 2], ROW - 1);
      }
    }
    this.write(context, labels, colours.ink);
    this.ringAround();
  }

  // Find what is to be drawn: rectangles by colour, and the names of those that have room for one.
  lay(width, height, colours) {
    const { tree } = this;
    const [from, to] = this.window;
    const whole = tree.total[0] || 1;
    const scale = width / ((to - from) * whole);
    const offset = from * whole;
    const top = this.root.scrollTop;
    const least = LEAST / scale;
    const ends = new Float64Array(tree.deepest + 1); // of what is drawn in each row: a pixel is drawn on once
    const labels = [];
    this.batches = new Map();
    this.rows = Array.from({ length: tree.deepest + 1 }, () => []);
    const stack = tree.total[0] > 0 ? [0] : [];
    while (stack.length) {
      const node = stack.pop();
      const depth = tree.depth[node];
      const left = Math.max(0, (tree.start[node] - offset) * scale);
      const right = Math.min(width, (tree.start[node] - offset + tree.total[node]) * scale);
      const y = this.y(depth) - top;
      if (y > -ROW && y < height && right > ends[depth] + LEAST / 2) {
        const x = Math.max(left, ends[depth]);
        const w = right - x;
        ends[depth] = right;
        const colour = this.colour(node, colours);
        let batch = this.batches.get(colour);
        if (!batch) this.batches.set(colour, (batch = []));
        batch.push(x, y, w > 3 ? w - 1 : Math.max(w, LEAST));
        this.rows[depth].push(left, right, node);
        if (right - left > TEXT) labels.push(node, left, right, y);
      }
      const children = tree.of(node);
      for (let i = children.length - 1; i >= 0; i--) {
        const child = children[i];
        if (tree.total[child] < least) continue;
        const begin = (tree.start[child] - offset) * scale;
        if (begin < width && begin + tree.total[child] * scale > 0) stack.push(child);
      }
    }
    return labels;
  }

  colour(node, colours) {
    const { tree } = this;
    if (this.found && !this.found[tree.nameOf[node]]) return colours.muted;
    if (tree.before) {
      const sides = [tree.total[node], tree.totalBefore[node]];
      return colours.changes[changeStep(...(tree.swapped ? sides.reverse() : sides))];
    }
    const name = tree.nameOf[node];
    return colours.fills[tree.kinds[name] ?? 0][node ? (this.shades[name] ??= shade(tree.names[name])) : 0];
  }

  write(context, labels, ink) {
    context.fillStyle = ink;
    context.textBaseline = "middle";
    context.font = this.font ??= `11.5px ${getComputedStyle(this.root).fontFamily}`;
    for (let i = 0; i < labels.length; i += 4) {
      const [node, left, right, y] = labels.slice(i, i + 4);
      const text = this.fit(context, this.tree.name(node), right - left - 2 * PAD);
      if (text) context.fillText(text, left + PAD, y + ROW / 2);
    }
  }

  fit(context, name, room) {
    const widths = (this.measured ??= new Map());
    const text = name.length > 300 ? name.slice(0, 300) : name;
    let width = widths.get(text);
    if (width === undefined) {
      if (widths.size > 20_000) widths.clear();
      widths.set(text, (width = context.measureText(text).width));
    }
    if (width <= room) return text;
    let length = Math.floor((text.length * room) / width) - 1;
    if (length < 2) return "";
    while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > room) length--;
    return length > 1 ? `${text.slice(0, length)}…` : "";
  }

  // --- the mouse ----------------------------------------------------------------------------------------------------

  at(event) {
    if (!this.tree) return -1;
    const row = Math.floor((event.offsetY + this.root.scrollTop) / ROW);
    const drawn = this.rows[this.inverted ? this.tree.deepest - row : row] ?? [];
    let [low, high] = [0, drawn.length / 3];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (drawn[middle * 3 + 1] <= event.offsetX) low = middle + 1;
      else high = middle;
    }
    return low < drawn.length / 3 && drawn[low * 3] <= event.offsetX ? drawn[low * 3 + 2] : -1;
  }

  hover(event) {
    const node = this.at(event);
    this.around(this.mark, node);
    this.canvas.style.cursor = node >= 0 ? "pointer" : "default";
    this.on.hover(node, event);
  }

  leave() {
    this.mark.hidden = true;
    this.on.hover(-1);
  }

  ringAround() {
    this.around(this.ring, this.selected || -1);
  }

  // Put a box around a node, if it is to be seen.
  around(box, node) {
    box.hidden = true;
    if (node < 0 || !this.tree) return;
    const drawn = this.rows[this.tree.depth[node]] ?? [];
    for (let i = 0; i < drawn.length; i += 3) {
      if (drawn[i + 2] !== node) continue;
      box.hidden = false;
      box.style.transform = `translate(${drawn[i]}px, ${this.y(this.tree.depth[node])}px)`;
      box.style.width = `${Math.max(2, drawn[i + 1] - drawn[i] - 1)}px`;
    }
  }

  destroy() {
    cancelAnimationFrame(this.moving);
  }
}
