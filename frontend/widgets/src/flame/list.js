// The same tree as a list (role=tree): for the keyboard and for screen readers, and for whoever wants numbers. Only the
// rows that are seen are in the page, however many are open.

import { element } from "../element.js";
import { amount, percent } from "./text.js";

const ROW = 22;
const SHOWN = 12; // rows
const MORE = 4; // rows above and below those that are seen

let lists = 0;

export class List {
  // on: {select(node), zoom(node), sandwich(node), search()}; say(node): more to be said of one
  constructor(parent, on, unit) {
    Object.assign(this, { on, unit, tree: null, at: 0, open: new Set([0]), rows: [], id: `bpfnb-fl-${++lists}` });
    this.root = element("div", "bpfnb-fl-list", parent);
    this.root.setAttribute("role", "tree");
    this.root.setAttribute("aria-label", "functions, by what they call");
    this.root.tabIndex = 0;
    this.space = element("div", "bpfnb-fl-space", this.root);
    this.space.setAttribute("role", "presentation");
    this.root.addEventListener("scroll", () => this.fill(), { passive: true });
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("focus", () => this.fill());
    this.root.addEventListener("click", (event) => this.click(event));
    this.root.addEventListener("dblclick", () => this.on.zoom(this.at));
  }

  show(tree) {
    if (this.tree !== tree) {
      this.open = new Set(opened(tree));
      this.at = 0;
    }
    this.tree = tree;
    this.children = new Map();
    this.flatten();
    this.fill();
  }

  // Go to a node, with all above it open.
  go(node, told = false) {
    for (const above of this.tree.path(node).slice(0, -1)) {
      if (!this.open.has(above)) this.toggle(above, true);
    }
    this.at = node;
    if (this.stale) this.flatten();
    this.index = this.rowOf[node];
    this.reveal();
    if (told) this.on.select(node);
  }

  // The children, with the largest first: that of a list is another order than that of a picture.
  of(node) {
    let found = this.children.get(node);
    if (!found) {
      const { total } = this.tree;
      found = Array.from(this.tree.of(node)).sort((a, b) => total[b] - total[a] || a - b);
      this.children.set(node, found);
    }
    return found;
  }

  flatten() {
    const rows = (this.rows = []);
    this.rowOf = new Int32Array(this.tree.parent.length).fill(-1);
    this.stale = false;
    const stack = [[0, 1, 1]];
    while (stack.length) {
      const [node, place, size] = stack.pop();
      this.rowOf[node] = rows.length;
      rows.push([node, place, size]);
      if (!this.open.has(node)) continue;
      const children = this.of(node);
      for (let i = children.length - 1; i >= 0; i--) stack.push([children[i], i + 1, children.length]);
    }
    while (this.rowOf[this.at] < 0) this.at = this.tree.parent[this.at]; // it is not open any more, or counts nothing
    this.index = this.rowOf[this.at];
    this.space.style.height = `${rows.length * ROW}px`;
    this.root.style.setProperty("--rows", Math.min(SHOWN, rows.length));
  }

  reveal() {
    const [y, height] = [this.index * ROW, this.root.clientHeight || SHOWN * ROW];
    if (y < this.root.scrollTop) this.root.scrollTop = y;
    else if (y + ROW > this.root.scrollTop + height) this.root.scrollTop = y + ROW - height;
    this.fill();
  }

  fill() {
    if (!this.tree) return;
    const first = Math.max(0, Math.floor(this.root.scrollTop / ROW) - MORE);
    const last = Math.min(this.rows.length, first + SHOWN + 2 * MORE);
    const made = [];
    for (let i = first; i < last; i++) made.push(this.row(i));
    if (this.index < first || this.index >= last) made.push(this.row(this.index)); // aria-activedescendant is in the page
    this.space.replaceChildren(...made);
    this.root.setAttribute("aria-activedescendant", `${this.id}-${this.at}`);
  }

  row(i) {
    const { tree } = this;
    const [node, place, size] = this.rows[i];
    const row = element("div", "bpfnb-fl-row");
    row.id = `${this.id}-${node}`;
    row.node = node;
    const inner = this.of(node).length;
    const attributes = {
      role: "treeitem", "aria-level": tree.depth[node] + 1, "aria-setsize": size, "aria-posinset": place,
      "aria-selected": node === this.at,
    };
    if (inner) attributes["aria-expanded"] = this.open.has(node);
    for (const [name, value] of Object.entries(attributes)) row.setAttribute(name, String(value));
    row.style.transform = `translateY(${i * ROW}px)`;
    const share = tree.total[node] / (tree.total[0] || 1);
    const name = element("span", "bpfnb-fl-name", row);
    name.style.paddingLeft = `${Math.min(tree.depth[node], 24) * 12 + 16}px`;
    name.textContent = short(tree.name(node));
    name.dataset.sign = inner ? (this.open.has(node) ? "▾" : "▸") : "";
    name.title = tree.name(node).slice(0, 1000);
    const bar = element("span", "bpfnb-fl-bar", row);
    bar.style.setProperty("--share", share);
    bar.textContent = percent(share);
    element("span", "bpfnb-fl-total", row).textContent = amount(tree.total[node], this.unit());
    element("span", "bpfnb-fl-self", row).textContent = amount(tree.own[node], this.unit());
    row.setAttribute("aria-label", this.say(node, share));
    return row;
  }

  say(node, share) {
    const { tree } = this;
    const parts = [short(tree.name(node)), percent(share), `total ${amount(tree.total[node], this.unit())}`];
    parts.push(`self ${amount(tree.own[node], this.unit())}`);
    if (tree.before) parts.push(`${tree.swapped ? "now" : "before"} ${amount(tree.totalBefore[node], this.unit())}`);
    return parts.join(", ");
  }

  click(event) {
    const row = event.target.closest?.(".bpfnb-fl-row");
    if (!row) return;
    const again = row.node === this.at;
    if (again || event.offsetX < 24) this.toggle(row.node);
    this.go(row.node, true);
  }

  toggle(node, open = !this.open.has(node)) {
    if (open) this.open.add(node);
    else this.open.delete(node);
    this.stale = true;
  }

  // The keys of a tree, as WAI-ARIA's authoring practices have them.
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.tree) return;
    const { at, rows, index } = this;
    const inner = this.of(at);
    const page = Math.max(1, SHOWN - 1);
    const to = (i) => rows[Math.max(0, Math.min(rows.length - 1, i))][0];
    const actions = {
      ArrowDown: () => this.go(to(index + 1), true),
      ArrowUp: () => this.go(to(index - 1), true),
      PageDown: () => this.go(to(index + page), true),
      PageUp: () => this.go(to(index - page), true),
      Home: () => this.go(0, true),
      End: () => this.go(to(rows.length - 1), true),
      ArrowRight: () => {
        if (inner.length && !this.open.has(at)) this.toggle(at, true);
        else if (inner.length) return this.go(inner[0], true);
        return this.go(at);
      },
      ArrowLeft: () => {
        if (inner.length && this.open.has(at)) this.toggle(at, false);
        else return this.go(at ? this.tree.parent[at] : 0, true);
        return this.go(at);
      },
      "*": () => {
        for (const node of this.of(this.tree.parent[at])) this.toggle(node, true);
        this.go(at);
      },
      Enter: () => this.on.zoom(at),
      Escape: () => this.on.zoom(0),
      s: () => this.on.sandwich(at),
      "/": () => this.on.search(),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    actions[event.key]();
  }
}

// What is open at first: from the root on as long as there is but one way to go, or most goes one way.
function opened(tree) {
  const open = [0];
  for (let node = 0; open.length < 40; open.push(node)) {
    const next = Array.from(tree.of(node)).find((child) => tree.total[child] >= 0.5 * tree.total[node]);
    if (next === undefined) break;
    node = next;
  }
  return open;
}

function short(name) {
  return name.length > 200 ? `${name.slice(0, 199)}…` : name;
}
