// Pieces that views of counts share: elements, choices, numbers in their units.

import { element } from "../element.js";
import css from "./distribution.css";

// An empty place for a view, with its rules.
export function place(root, className) {
  const made = element("div", `bpfnb-counted ${className}`, root);
  element("style", "", made).textContent = css;
  return made;
}

export function select(parent, text, chosen) {
  const label = element("label", "", parent);
  element("span", "", label).textContent = text;
  const made = element("select", "", label);
  made.setAttribute("aria-label", text); // without the words that can be chosen
  made.addEventListener("change", () => chosen(made.value));
  made.show = (pairs, value) => {
    made.replaceChildren(
      ...pairs.map(([value, text]) => Object.assign(element("option"), { value, textContent: text })),
    );
    made.value = value;
    label.hidden = pairs.length < 2;
  };
  return made;
}

export function toggle(parent, text, title, pressed) {
  const made = element("button", "", parent);
  made.type = "button";
  made.textContent = text;
  made.title = title;
  made.setAttribute("aria-pressed", "false");
  made.addEventListener("click", () => {
    const on = made.getAttribute("aria-pressed") !== "true";
    made.setAttribute("aria-pressed", String(on));
    pressed(on);
  });
  return made;
}

// What is chosen of a distribution: window, scale, by, unit.
export class Choices {
  constructor(parent, page, sinceStart) {
    const choose = (name, value) => page.choose({ [name]: value });
    this.sinceStart = sinceStart;
    this.window = select(parent, "last", (value) => choose("window", Number(value)));
    this.by = select(parent, "by", (value) => choose("by", value || null));
    this.scale = select(parent, "buckets", (value) => choose("scale", value));
    this.unit = select(parent, "unit", (value) => choose("unit", value));
  }

  show({ window, windows, by, columns, scale, scales, unit, units }) {
    const spans = windows.map((seconds) => [String(seconds), span(seconds)]);
    this.window.show(this.sinceStart ? [...spans, ["0", "since the start"]] : spans, String(window));
    this.by.show([["", this.sinceStart ? "all columns" : "all"], ...columns.map((name) => [name, name])], by ?? "");
    this.scale.show(scales.map((name) => [name, name === "log2" ? "powers of two" : "linear"]), scale);
    this.unit.show(units.map((name) => [name, name || "none"]), unit);
  }
}

// What is missing from a view, in one line.
export function remarks({ lost, missing, period, note }) {
  const said = note ? [note] : [];
  if (lost) said.push(`${whole(lost)} lost`);
  if (missing) said.push(`${whole(missing)} without a number`);
  if (period > 1) said.push(`large: read every ${period} s`);
  return said.join("; ");
}

// --- canvas ---------------------------------------------------------------------------------------------------------

// Fit a canvas to a size in CSS pixels. Returns its context, in these pixels.
export function fit(canvas, width, height) {
  const ratio = globalThis.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// Round steps from 0 to `most`, about `count` of them, whole ones.
export function steps(most, count) {
  if (!(most > 0)) return [0];
  const least = Math.max(most / count, 1);
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((times) => times * power).find((width) => width >= least * 0.999);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, i) => i * step);
}

// The edges between buckets that have room for their text, `room` pixels apart, each `size` pixels.
export function everyEdge(count, size, room) {
  return Math.max(1, Math.ceil(room / size));
}

// --- numbers --------------------------------------------------------------------------------------------------------

const NS = { ns: 1, us: 1e3, ms: 1e6, s: 1e9 };
const BINARY = ["", "K", "M", "G", "T", "P", "E"];

export function whole(number) {
  return number.toLocaleString("en");
}

export function short(number) {
  const power = Math.abs(number) < 1000 ? 0 : Math.min(Math.floor(Math.log10(Math.abs(number)) / 3 + 1e-12), 6);
  return `${Number((number / 1000 ** power).toPrecision(3))}${["", "k", "M", "G", "T", "P", "E"][power]}`;
}

// A bound of a bucket: 4us, 20ms, 4KiB; without a unit 4K where buckets are powers of two, which is 4096.
export function edge(value, unit, scale) {
  if (value === null) return "";
  if (NS[unit]) return duration(value * NS[unit]);
  if (unit === "bytes") return binary(value, value && Math.abs(value) >= 1024 ? "iB" : "B");
  if (scale === "log2" && Math.abs(value) >= 1024) return binary(value, "");
  return Math.abs(value) < 1e6 ? String(Number(value.toPrecision(6))) : short(value);
}

export function duration(ns) {
  if (!ns) return "0";
  const [name, size] = Object.entries(NS).findLast(([, size]) => size <= Math.abs(ns) * (1 + 1e-9)) ?? ["ns", 1];
  return `${Number((ns / size).toPrecision(3))}${name}`;
}

function binary(value, end) {
  const power = Math.abs(value) < 1024 ? 0 : Math.min(Math.floor(Math.log2(Math.abs(value)) / 10), 6);
  return `${Number((value / 1024 ** power).toPrecision(4))}${BINARY[power]}${end}`;
}

// A bucket: [4us, 8us), [4]; null is an end that is open.
export function bucket(low, high, unit, scale) {
  if (low === null) return `below ${edge(high, unit, scale)}`;
  if (high === null) return `${edge(low, unit, scale)} and above`;
  if (!unit && high - low === 1 && low % 1 === 0) return edge(low, unit, scale);
  return `${edge(low, unit, scale)} to ${edge(high, unit, scale)}`;
}

export function span(seconds) {
  if (seconds < 60) return `${seconds} s`;
  return seconds < 3600 ? `${Number((seconds / 60).toPrecision(3))} min` : `${Number((seconds / 3600).toPrecision(3))} h`;
}

export function clock(seconds) {
  return new Date(Math.round(seconds * 1000)).toISOString().slice(11, 19);
}
