// A table of the largest. Rows keep their elements while they are there, and move to their places. See
// views/live/counts/top.py for what comes.

import { element } from "../element.js";
import { duration, edge, place, remarks, select, short, toggle, whole } from "./tools.js";

const ROW = 22; // height
const FILTER_AFTER = 250; // ms

export function top(root, page) {
  const view = new TopView(root, page);
  return {
    whole: (header) => view.whole(header),
    delta: (header) => view.delta(header),
    resize: () => {},
    destroy: () => view.destroy(),
  };
}

class TopView {
  constructor(root, page) {
    this.page = page;
    this.rows = new Map(); // elements by the entry's key
    this.root = place(root, page.still ? "bpfnb-still" : "");
    const tools = element("div", "bpfnb-tools", this.root);
    this.n = select(tools, "top", (value) => page.choose({ n: Number(value) }));
    this.rate = toggle(tools, "per second", "what has come in the last second, rather than all", (on) => page.choose({ rate: on }));
    this.filter = element("input", "", tools);
    this.filter.type = "search";
    this.filter.maxLength = 100;
    this.filter.placeholder = "filter";
    this.filter.setAttribute("aria-label", "only entries with this text");
    this.filter.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => page.choose({ filter: this.filter.value }), FILTER_AFTER);
    });
    this.entries = element("span", "", tools);
    this.table = element("div", "bpfnb-table", this.root);
    this.table.setAttribute("role", "table");
    this.head = element("div", "bpfnb-row bpfnb-top-head", this.table);
    this.head.setAttribute("role", "row");
    this.lines = element("div", "bpfnb-lines", this.table);
    this.lines.setAttribute("role", "rowgroup");
    this.remark = element("div", "bpfnb-remark", this.root);
    this.remark.setAttribute("role", "status");
  }

  whole(header) {
    this.data = { ...header };
    const sizes = [...new Set([5, 10, 20, 50, 100, header.n])].sort((a, b) => a - b);
    this.n.show(sizes.map((n) => [String(n), String(n)]), String(header.n));
    this.rate.setAttribute("aria-pressed", String(header.rate));
    if (document.activeElement !== this.filter) this.filter.value = header.filter;
    this.root.style.setProperty("--bpfnb-series", this.page.theme().series[0]);
    this.showHead();
    this.show();
  }

  delta(header) {
    if (!this.data) return;
    Object.assign(this.data, header);
    if (header.columns) this.showHead();
    this.show();
  }

  showHead() {
    const { columns, numbers, sort, rate } = this.data;
    this.sortAt = columns.findIndex(([name]) => name === sort);
    const wide = ([, kind], at) => (at === this.sortAt ? "minmax(11em, 2fr)" : kind === "text" ? "minmax(7em, 3fr)" : "minmax(5em, 1fr)");
    this.table.style.setProperty("--columns", columns.map(wide).join(" "));
    this.head.style.gridTemplateColumns = columns.map(wide).join(" ");
    this.head.replaceChildren(
      ...columns.map(([name, kind], at) => {
        const cell = element("span", kind === "text" ? "" : "bpfnb-right");
        cell.setAttribute("role", "columnheader");
        const text = rate && numbers.includes(name) ? `${name}/s` : name;
        if (!numbers.includes(name) || numbers.length < 2) cell.textContent = cell.title = text;
        else {
          const made = element("button", "", cell);
          made.type = "button";
          made.textContent = text;
          made.title = `sort by ${name}`;
          made.setAttribute("aria-pressed", String(at === this.sortAt));
          made.addEventListener("click", () => this.page.choose({ sort: name }));
        }
        return cell;
      }),
    );
    for (const [key, row] of this.rows) {
      row.remove();
      this.rows.delete(key);
    }
  }

  show() {
    const { rows, columns, entries, rate, filter } = this.data;
    const most = Math.max(...rows.map((row) => number(row[this.sortAt + 1])), 0);
    const seen = new Set();
    rows.forEach(([key, ...cells], at) => {
      seen.add(key);
      const line = this.rows.get(key) ?? this.line(key, at);
      line.style.transform = `translateY(${at * ROW}px)`;
      line.setAttribute("aria-rowindex", String(at + 2));
      columns.forEach(([, kind], i) => {
        const cell = line.children[i];
        const text = kind === "text" || kind === "name" ? cells[i] : this.write(cells[i], kind);
        if (cell.textContent !== text) cell.textContent = cell.title = text;
        if (i === this.sortAt) cell.style.setProperty("--share", String(most > 0 ? Math.max(number(cells[i]), 0) / most : 0));
      });
    });
    for (const [key, row] of this.rows) {
      if (seen.has(key)) continue;
      row.remove();
      this.rows.delete(key);
    }
    // Elements in the order that is seen: for those who listen, and for Tab.
    const order = rows.map(([key]) => this.rows.get(key));
    if (order.some((row, at) => this.lines.children[at] !== row)) this.reorder(order);
    this.lines.style.height = `${Math.max(rows.length, 1) * ROW}px`;
    this.lines.dataset.none = String(!rows.length);
    const what = `${whole(entries)} ${entries === 1 ? "entry" : "entries"}`;
    this.entries.textContent = rows.length ? `of ${what}` : filter ? `none of ${what} matches` : rate ? "nothing in the last second" : what;
    this.remark.textContent = remarks({ ...this.data, lost: 0, missing: 0 });
  }

  line(key, at) {
    const line = element("div", "bpfnb-row", this.lines);
    line.setAttribute("role", "row");
    line.style.gridTemplateColumns = this.head.style.gridTemplateColumns;
    line.style.transform = `translateY(${at * ROW}px)`;
    this.data.columns.forEach(([, kind], i) => {
      const text = kind === "text";
      const cell = element(text ? "bdi" : "span", `${text ? "" : "bpfnb-right"} ${i === this.sortAt ? "bpfnb-bar" : ""}`, line);
      cell.setAttribute("role", "cell");
    });
    this.rows.set(key, line);
    return line;
  }

  // An element that is moved in the document begins its transition anew, so only those out of order are.
  reorder(order) {
    let next = null;
    for (const row of [...order].reverse()) {
      if (row.nextSibling !== next) this.lines.insertBefore(row, next);
      next = row;
    }
  }

  write(value, kind) {
    if (value === null) return "";
    if (typeof value === "string") return value;
    if (kind === "ns") return duration(value);
    if (kind === "bytes") return edge(value, "bytes", "");
    return this.data.rate && value < 100 ? String(Math.round(value * 10) / 10) : Math.abs(value) < 1e15 ? whole(Math.round(value * 100) / 100) : short(value);
  }

  destroy() {
    clearTimeout(this.timer);
    this.root.remove();
  }
}

function number(value) {
  return typeof value === "string" ? Number(value.replaceAll(",", "")) : value ?? 0;
}
