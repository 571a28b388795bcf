// A flame graph: a picture (flame/chart.js) and the same as a list (flame/list.js). bpfnb/views/live/flame.py and
// bpfnb/views/flamegraph.py send what is drawn:
//
//     header   unit, names: [all] or, in a delta, [the new ones], values: "i4" or "f8", before: whether there is something
//              to compare with, window and windows: seconds that are shown and that may be chosen, of a live one, range: of
//              time that is shown instead, note: a line below, inverted, empty: why there is nothing
//     whole    [kinds of names: uint8, callers: int32, names of nodes: int32, own values, own values before]
//     delta    [kinds, callers, names: of what is new, nodes that have changed: int32, their own values]

import { element } from "../element.js";
import { Chart } from "../flame/chart.js";
import css from "../flame/flame.css";
import { List } from "../flame/list.js";
import { KINDS, palette } from "../flame/palette.js";
import { Tree } from "../flame/tree.js";
import { amount, exact, percent } from "../flame/text.js";

export function flame(root, page) {
  return new Flame(root, page);
}

class Flame {
  constructor(root, page) {
    this.page = page;
    this.header = {};
    this.around = null; // the function whose callers and callees are shown: the number of its name
    this.root = element("div", "bpfnb-fl", root);
    element("style", "", this.root).textContent = css;
    this.build();
  }

  build() {
    const { root } = this;
    this.tools = element("div", "bpfnb-fl-tools", root);
    this.search = element("input", "", this.tools);
    Object.assign(this.search, { type: "search", placeholder: "Search functions", maxLength: 200, spellcheck: false });
    this.search.setAttribute("aria-label", "search functions");
    this.search.addEventListener("input", () => this.find());
    this.search.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      this.search.value = "";
      this.find();
    });
    this.pattern = toggle(this.tools, ".*", "regular expression", () => this.find());
    this.windows = element("select", "", this.tools);
    this.windows.setAttribute("aria-label", "time that is shown");
    this.windows.addEventListener("change", () => this.page.choose({ window: Number(this.windows.value) }));
    this.unrange = action(this.tools, "All of the time", "back from the range of time that was brushed", () =>
      this.page.choose({ range: null }),
    );
    this.upward = toggle(this.tools, "Flame", "callers below, as a flame graph; else callers above, an icicle", (on) =>
      this.charts().forEach((chart) => chart.invert(on)),
    );
    this.order = toggle(this.tools, "By size", "the largest first, not by name", (on) => this.sort(on));
    this.both = toggle(this.tools, "Callers", "callers and callees of the function that is selected (s)", (on) =>
      this.sandwich(on ? this.chart.selected : 0),
    );
    this.both.disabled = true; // until one is selected
    this.earlier = toggle(this.tools, "Before", "as wide as before, which shows what is gone; else as wide as now", () =>
      this.swap(),
    );
    this.listing = toggle(this.tools, "List", "the same as a list", (on) => this.listed.classList.toggle("open", on));
    this.found = element("span", "bpfnb-fl-found", this.tools);
    this.found.setAttribute("role", "status"); // aria-live: polite
    this.path = element("nav", "bpfnb-fl-path", root);
    this.path.setAttribute("aria-label", "zoomed to");
    this.nothing = element("div", "bpfnb-fl-empty", root);
    this.nothing.hidden = true;
    this.main = element("div", "", root);
    this.chart = this.newChart(this.main);
    this.split = element("div", "", root);
    this.split.hidden = true;
    this.head = element("div", "bpfnb-fl-head", this.split);
    this.callers = this.newChart(this.split, 240);
    this.callees = this.newChart(this.split, 300);
    this.callers.inverted = true;
    this.legend = element("div", "bpfnb-fl-legend", root);
    this.note = element("div", "bpfnb-fl-note", root);
    this.listed = element("div", "bpfnb-fl-listed", root);
    const heads = element("div", "bpfnb-fl-heads", this.listed);
    heads.setAttribute("aria-hidden", "true");
    for (const text of ["function", "share", "total", "self"]) element("span", "", heads).textContent = text;
    this.list = new List(
      this.listed,
      {
        select: (node) => this.select(node),
        zoom: (node) => this.zoom(node),
        sandwich: (node) => this.sandwich(this.around === null ? node : 0),
        search: () => this.search.focus(),
      },
      () => this.header.unit,
    );
    this.tip = element("div", "bpfnb-fl-tip", root);
    this.tip.hidden = true;
    this.tip.setAttribute("aria-hidden", "true");
  }

  newChart(parent, most) {
    const chart = new Chart(
      parent,
      {
        hover: (node, event) => this.hover(chart, node, event),
        select: (node) => (chart === this.chart ? this.zoom(node) : this.pick(chart, node)),
        zoomed: () => chart === this.chart && this.showPath(),
      },
      () => this.page.theme().dark,
      this.page.still,
      most,
    );
    return chart;
  }

  charts() {
    return [this.chart, this.callees];
  }

  // --- data ---------------------------------------------------------------------------------------------------------

  whole(header, buffers) {
    const [kinds, parent, nameOf, ...values] = buffers;
    let [own, before] = values.map((data) => numbers(data, header.values));
    this.header = header;
    const old = this.tree;
    if (old?.swapped && before) [own, before] = [before, own];
    this.tree = new Tree(header.names, bytes(kinds), ints(parent), ints(nameOf), own, before);
    this.tree.bySize = pressed(this.order);
    this.tree.swapped = Boolean(old?.swapped && before);
    // What was there before is looked at as before: nodes keep their numbers, and a page may have changed its colours.
    const same = old && old.parent.length <= this.tree.parent.length && old.names.every((n, i) => n === header.names[i]);
    if (same) this.chart.tree = this.tree;
    if (same && this.list.tree) this.list.tree = this.tree;
    if (!old && header.inverted) press(this.upward, true);
    if (!old && header.inverted) this.charts().forEach((chart) => (chart.inverted = true));
    this.chart.shades = [];
    this.update();
  }

  delta(header, [kinds, parent, nameOf, changed, values]) {
    const { tree } = this;
    const { names, ...rest } = header;
    Object.assign(this.header, rest);
    tree.names.push(...names);
    tree.kinds = joined(Uint8Array, tree.kinds, bytes(kinds));
    tree.parent = joined(Int32Array, tree.parent, ints(parent));
    tree.nameOf = joined(Int32Array, tree.nameOf, ints(nameOf));
    const own = new Float64Array(tree.parent.length);
    own.set(tree.own);
    const now = numbers(values, header.values);
    ints(changed).forEach((node, i) => (own[node] = now[i]));
    tree.own = own;
    tree.count();
    this.update();
  }

  update() {
    const { header, tree } = this;
    this.nothing.hidden = tree.total[0] > 0;
    this.nothing.textContent = header.empty || "no stacks";
    this.note.textContent = header.note ?? "";
    this.earlier.hidden = !tree.before;
    this.showWindows();
    this.chart.show(tree);
    this.list.show(tree);
    this.find();
    if (this.around !== null) this.showSandwich();
    this.showPath();
    this.showLegend();
  }

  showWindows() {
    const { windows, window, range } = this.header;
    this.windows.hidden = !windows;
    this.unrange.hidden = !range;
    if (!windows || document.activeElement === this.windows) return;
    this.windows.replaceChildren(
      ...windows.map(([seconds, text]) => {
        const option = element("option", "");
        option.value = seconds;
        option.textContent = text;
        option.selected = seconds === window;
        return option;
      }),
    );
  }

  // --- what a person does -------------------------------------------------------------------------------------------

  select(node) {
    this.chart.select(node);
    this.both.disabled = !node && this.around === null;
  }

  zoom(node) {
    // Once more on what fills the width already: a step back.
    const back = node && node === this.chart.focus ? this.tree.parent[node] : node;
    this.chart.zoom(back, node);
    this.list.go(node);
    this.both.disabled = !node && this.around === null;
  }

  sort(bySize) {
    for (const tree of [this.tree, this.callers.tree, this.callees.tree]) tree?.order(bySize);
    this.chart.show(this.tree);
    for (const chart of [this.callers, this.callees]) if (chart.tree) chart.show(chart.tree);
  }

  // Draw a comparison the other way round.
  swap() {
    const { tree } = this;
    [tree.own, tree.before] = [tree.before, tree.own];
    tree.swapped = !tree.swapped;
    tree.count();
    this.update();
  }

  // Callers and callees of a node's function; of the root: the whole tree again.
  sandwich(node) {
    this.around = node ? this.tree.nameOf[node] : null;
    press(this.both, node > 0);
    this.both.disabled = !node && !this.chart.selected;
    this.split.hidden = !node;
    this.main.hidden = Boolean(node);
    if (node) this.showSandwich();
    else this.chart.draw();
  }

  showSandwich() {
    const [callers, callees] = this.tree.sandwich(this.around);
    const share = callees.total[0] / (this.tree.total[0] || 1);
    this.head.replaceChildren(
      element("b", ""), ` ${percent(share)}, ${exact(callees.total[0], this.header.unit)}: callers above, callees below`,
    );
    this.head.firstChild.textContent = callees.rootName.slice(0, 300);
    for (const [chart, tree] of [[this.callers, callers], [this.callees, callees]]) {
      tree.bySize = pressed(this.order);
      chart.found = this.chart.found;
      chart.show(tree);
    }
  }

  // A function of the callers or callees is the next that is looked at.
  pick(chart, node) {
    const name = chart.tree.nameOf[node];
    const { nameOf, total } = this.tree;
    let best = 0;
    for (let i = 1; i < nameOf.length; i++) if (nameOf[i] === name && (!best || total[i] > total[best])) best = i;
    if (name === this.around || !best) return;
    this.chart.selected = best;
    this.list.go(best);
    this.sandwich(best);
  }

  find() {
    const { tree } = this;
    const text = this.search.value;
    let test = null;
    this.search.removeAttribute("aria-invalid");
    if (text && pressed(this.pattern)) {
      try {
        const pattern = new RegExp(text, "i");
        test = (name) => pattern.test(name);
      } catch {
        this.search.setAttribute("aria-invalid", "true");
        return this.say("not a regular expression");
      }
    } else if (text) {
      const small = text.toLowerCase();
      test = (name) => name.toLowerCase().includes(small);
    }
    const found = test && tree && Uint8Array.from(tree.names, (name, i) => (i && test(name) ? 1 : 0));
    for (const chart of [this.chart, this.callers, this.callees]) {
      chart.found = found;
      chart.draw();
    }
    this.say(found ? this.saying(found) : "");
  }

  saying(found) {
    const all = this.tree.match(found);
    if (!all.nodes) return "nothing found";
    const functions = found.reduce((sum, one) => sum + one, 0);
    const parts = [`${percent(all.share)} (${amount(all.total, this.header.unit)})`];
    parts.push(`in ${functions.toLocaleString("en")} ${functions === 1 ? "function" : "functions"}`);
    if (this.chart.focus) parts.push(`· ${percent(this.tree.match(found, this.chart.focus).share)} of what is shown`);
    return parts.join(" ");
  }

  say(text) {
    if (this.found.textContent !== text) this.found.textContent = text;
  }

  // --- beside the picture -------------------------------------------------------------------------------------------

  showPath() {
    const { tree, chart } = this;
    const path = tree.path(chart.focus);
    const shown = path.length > 7 ? [path[0], -1, ...path.slice(-5)] : path;
    const parts = [];
    for (const node of shown) {
      if (parts.length) parts.push(Object.assign(element("span", ""), { textContent: "›", ariaHidden: "true" }));
      if (node < 0) {
        parts.push(Object.assign(element("span", ""), { textContent: "…" }));
        continue;
      }
      const step = element("button", "");
      step.type = "button";
      step.textContent = tree.name(node).slice(0, 60);
      step.title = node ? tree.name(node).slice(0, 1000) : "all: the whole picture";
      step.addEventListener("click", () => {
        chart.zoom(node);
        this.list.go(node);
      });
      parts.push(step);
    }
    const sum = element("span", "bpfnb-fl-sum");
    const total = tree.total[chart.focus];
    sum.textContent = chart.focus
      ? `${percent(total / tree.total[0])} · ${amount(total, this.header.unit)} of ${this.sum()}`
      : this.sum();
    this.path.replaceChildren(...parts, sum);
    if (this.search.value) this.find();
  }

  sum() {
    const { unit } = this.header;
    return `${amount(this.tree.total[0], unit)}${unit === "count" ? " counted" : ""}`;
  }

  showLegend() {
    const colours = palette(this.page.theme().dark);
    const { tree } = this;
    if (tree.before) {
      const bar = element("i", "wide");
      bar.style.background = `linear-gradient(90deg, ${colours.changes.join(", ")})`;
      const width = tree.swapped ? "what there was before" : "what there is now";
      const parts = ["gone", bar, `new: the colour is the change, the width ${width}`];
      const one = element("span", "");
      one.append(...parts);
      this.legend.replaceChildren(one);
      return;
    }
    const used = new Set();
    for (let i = 1; i < tree.parent.length; i++) if (tree.total[i]) used.add(tree.kind(i));
    this.legend.replaceChildren(
      ...[...used].sort().map((kind) => {
        const one = element("span", "");
        element("i", "", one).style.background = colours.fills[kind][0];
        one.append(KINDS[kind] === "group" ? this.header.groups || "group" : KINDS[kind]);
        return one;
      }),
    );
  }

  hover(chart, node, event) {
    const { tip } = this;
    if (!tip) return;
    if (node < 0) {
      tip.hidden = true;
      return;
    }
    if (tip.node !== node || tip.chart !== chart) this.fillTip(chart.tree, node);
    Object.assign(tip, { node, chart, hidden: false });
    const box = this.root.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const left = Math.max(0, Math.min(x + 14, box.width - tip.offsetWidth - 2));
    const above = event.clientY + tip.offsetHeight + 24 > window.innerHeight && y > tip.offsetHeight + 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${above ? y - tip.offsetHeight - 12 : y + 18}px`;
  }

  fillTip(tree, node) {
    const { unit } = this.header;
    const [total, whole] = [tree.total[node], this.tree.total[0]];
    const facts = [["total", exact(total, unit)], ["self", exact(tree.own[node], unit)], ["share", percent(total / whole)]];
    const above = tree.parent[node];
    if (node && above) facts.push([`of ${tree.name(above).slice(0, 40)}`, percent(total / tree.total[above])]);
    if (tree.before) {
      const other = tree.totalBefore[node];
      const [now, before] = tree.swapped ? [other, total] : [total, other];
      facts.push(tree.swapped ? ["now", exact(now, unit)] : ["before", exact(before, unit)]);
      facts.push(["change", change(now, before, unit)]);
    }
    if (node) facts.push(["kind", KINDS[tree.kind(node)] === "group" ? this.header.groups || "group" : KINDS[tree.kind(node)]]);
    const name = element("b", "");
    name.textContent = tree.name(node).slice(0, 400);
    const rows = element("dl", "");
    for (const [term, value] of facts) {
      element("dt", "", rows).textContent = term;
      element("dd", "", rows).textContent = value;
    }
    this.tip.replaceChildren(name, rows);
  }

  resize() {
    for (const chart of [this.chart, this.callers, this.callees]) chart.draw();
    this.list.fill();
  }

  destroy() {
    for (const chart of [this.chart, this.callers, this.callees]) chart.destroy();
    this.root.remove();
  }
}

function change(now, before, unit) {
  const sign = now >= before ? "+" : "−";
  const ratio = before > 0 ? ` (${sign}${percent(Math.abs(now - before) / before)})` : now > 0 ? " (new)" : "";
  return `${sign}${amount(Math.abs(now - before), unit)}${ratio}`;
}

function action(parent, text, title, pressed) {
  const made = element("button", "", parent);
  Object.assign(made, { type: "button", textContent: text, title });
  made.addEventListener("click", pressed);
  return made;
}

function toggle(parent, text, title, changed) {
  const made = action(parent, text, title, () => {
    press(made, !pressed(made));
    changed(pressed(made));
  });
  press(made, false);
  return made;
}

function press(button, on) {
  button.setAttribute("aria-pressed", String(on));
}

function pressed(button) {
  return button.getAttribute("aria-pressed") === "true";
}

function aligned(data) {
  return data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
}

function bytes(data) {
  return new Uint8Array(aligned(data));
}

function ints(data) {
  return new Int32Array(aligned(data));
}

function numbers(data, type) {
  return type === "i4" ? Float64Array.from(ints(data)) : new Float64Array(aligned(data));
}

function joined(Type, first, second) {
  const both = new Type(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}
