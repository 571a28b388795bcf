// Numbers of sessions: {rows: [{name, state, events, rate, lost, dropped, refused, programs, tracer}]}. null: not known.

import { element } from "../element.js";
import css from "./counters.css";
import { whole } from "./tools.js";

const TILES = [
  ["events", "events", whole],
  ["rate", "per second", (n) => (n < 100 ? String(n) : whole(n))],
  ["lost", "lost", whole, (n) => n > 0 && "bad"],
  ["dropped", "dropped by keep", whole, (n) => n > 0 && "warn"],
  ["refused", "updates refused", whole, (n) => n > 0 && "bad"],
  ["programs", "of a CPU: its programs", share],
  ["tracer", "of a CPU: reading events", share],
];
const ALWAYS = new Set(["events", "rate", "lost"]);

export function counters(root) {
  const style = root.appendChild(document.createElement("style"));
  style.textContent = css;
  const list = root.appendChild(document.createElement("div"));
  list.className = "bpfnb-counters";

  function whole({ rows }) {
    list.replaceChildren(...rows.map((row) => line(row, rows.length > 1)));
  }
  return { whole, delta: whole, resize() {}, destroy: () => root.replaceChildren() };
}

function line(row, named) {
  const made = element("dl", "bpfnb-counts");
  made.setAttribute("aria-label", row.name);
  if (named) element("div", "bpfnb-counts-name", made).textContent = row.name;
  for (const [key, label, write, tone] of TILES) {
    const number = row[key];
    if (number === null || (!number && !ALWAYS.has(key))) continue;
    const tile = element("div", "bpfnb-count", made);
    tile.dataset.number = key;
    element("dt", "", tile).textContent = label;
    const shown = element("dd", "", tile);
    shown.textContent = write(number);
    shown.dataset.tone = tone?.(number) || "";
  }
  return made;
}

function share(number) {
  const percent = 100 * number;
  return `${percent < 10 ? Number(percent.toPrecision(2)) : Math.round(percent)} %`;
}
