// The panel in the browser: an anywidget module. Frames come from bpfnb/views/live/frames.py, by way of widget.py, which
// says what they look like. Text in them is somebody else's: textContent, never innerHTML.

import { element } from "./element.js";
import css from "./panel.css";
import { onThemeChange, theme } from "./theme.js";
import { views as renderers } from "./views/index.js";

const ACK_EVERY = 4; // frames; Python sends eight beyond the last one that was acknowledged
const SAID_FOR = 8_000; // ms
const UNHEARD = 5_000; // ms after Stop
const BUSY = "This kernel hears the panel only when no cell runs. To stop now, use the notebook's own interrupt button (■).";

function render({ model, el }) {
  const panel = new Panel(model, el);
  return () => panel.destroy();
}

class Panel {
  constructor(model, el) {
    this.model = model;
    this.name = Math.random().toString(36).slice(2, 10);
    this.frame = null; // number of the last frame drawn
    this.asked = false; // for a whole frame
    this.visible = null;
    this.gone = false; // the kernel is
    this.slots = [];
    this.status = { names: [], states: [], numbers: [], paused: false, wait: false };
    this.build(el);
    this.listen();
    this.send({ ready: true });
  }

  send(message) {
    if (this.gone) return;
    try {
      this.model.send({ page: this.name, ...message });
    } catch {
      this.lost(); // the connection is closed
    }
  }

  // --- the elements -------------------------------------------------------------------------------------------------

  build(el) {
    const root = (this.root = element("div", "bpfnb-panel", el));
    root.classList.add(`bpfnb-live-${this.model.get("mark")}`);
    root.dataset.lmSuppressShortcuts = "true"; // a key pressed on a button is not JupyterLab's
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "live panel");
    element("style", "", root).textContent = css;
    const head = element("div", "bpfnb-head", root);
    this.state = element("span", "bpfnb-state", head);
    this.state.setAttribute("role", "status");
    this.sessions = element("span", "bpfnb-sessions", head);
    const buttons = element("div", "bpfnb-buttons", head);
    this.layout = button(buttons, "Stack", "M0 0h11v3H0zM0 4h11v3H0zM0 8h11v3H0z", () => this.stack());
    this.pause = button(buttons, "Pause", "M1 0h3v11H1zM7 0h3v11H7z", () => this.togglePause());
    this.stop = button(buttons, "Stop", "M1 1h9v9H1z", () => this.askStop());
    this.note = element("div", "bpfnb-note", root);
    this.note.setAttribute("role", "status");
    this.views = element("div", "bpfnb-views", root);
    this.layout.hidden = this.note.hidden = true;
    this.showState("live", "connecting");
  }

  stack() {
    const stacked = this.views.dataset.stacked !== "true";
    this.views.dataset.stacked = String(stacked);
    label(this.layout, stacked ? "Side by side" : "Stack");
  }

  togglePause() {
    const paused = !this.status.paused;
    this.send({ do: paused ? "pause" : "resume" });
    this.pause.disabled = true; // until Python says that it is so
  }

  askStop() {
    this.pause.disabled = this.stop.disabled = true;
    this.showState("stopping", "stopping");
    this.send({ do: "stop" });
    this.unheard = setTimeout(() => this.remark(BUSY), UNHEARD);
  }

  remark(text) {
    this.note.hidden = !text;
    this.note.textContent = text;
  }

  showState(state, text) {
    this.root.dataset.state = state;
    if (this.state.textContent !== text) this.state.textContent = text;
  }

  // --- what is listened to ------------------------------------------------------------------------------------------

  listen() {
    const heard = (content, buffers) => this.hear(content, buffers);
    const live = () => this.lost();
    this.model.on("msg:custom", heard);
    this.model.on("comm_live_update", live);
    const seen = new IntersectionObserver((entries) => {
      this.inView = entries[entries.length - 1].isIntersecting;
      this.see();
    });
    seen.observe(this.root);
    const see = () => this.see();
    document.addEventListener("visibilitychange", see);
    const leave = () => this.send({ gone: true });
    window.addEventListener("pagehide", leave);
    const sizes = new ResizeObserver((entries) => {
      for (const { target, contentRect } of entries) target.bpfnbSlot?.resize(contentRect.width);
    });
    this.sizes = sizes;
    const noTheme = onThemeChange(() => this.send({ ready: true })); // drawn anew, in the new colours
    this.quiet = () => {
      this.model.off("msg:custom", heard);
      this.model.off("comm_live_update", live);
      document.removeEventListener("visibilitychange", see);
      window.removeEventListener("pagehide", leave);
      seen.disconnect();
      sizes.disconnect();
      noTheme();
    };
  }

  see() {
    const visible = Boolean(this.inView) && !document.hidden;
    if (visible === this.visible) return;
    this.visible = visible;
    this.send({ visible });
  }

  lost() {
    if (this.gone) return;
    this.gone = true;
    this.pause.disabled = this.stop.disabled = true;
    clearTimeout(this.unheard);
    this.remark("");
    this.showState("gone", `the kernel is gone; last update ${new Date(this.drawn ?? Date.now()).toISOString().slice(11, 19)} UTC`);
  }

  hear(content, buffers) {
    if (typeof content.frame === "number") this.draw(content, buffers);
    else if (typeof content.say === "number") this.slots[content.say]?.say(content.text);
  }

  // --- frames -------------------------------------------------------------------------------------------------------

  draw({ frame, base, status, views, counts }, buffers) {
    if (base !== null && base !== this.frame) {
      if (!this.asked) this.send({ ready: true });
      this.asked = true;
      return;
    }
    if (base === null) this.asked = false;
    this.frame = frame;
    this.drawn = Date.now();
    if (status) this.showStatus(status);
    let next = 0;
    (views ?? []).forEach((header, number) => {
      const own = buffers.slice(next, (next += counts[number]));
      if (header) this.slot(number).take(base === null, header, own);
    });
    if (base === null || frame % ACK_EVERY === 0) this.send({ ack: frame });
  }

  slot(number) {
    while (this.slots.length <= number) this.slots.push(new Slot(this, this.slots.length));
    this.layout.hidden = this.slots.length < 2;
    return this.slots[number];
  }

  showStatus(status) {
    Object.assign(this.status, status);
    const { paused, wait, states } = this.status;
    if (this.root.dataset.state !== "stopping" || "paused" in status) {
      this.showState(paused ? "paused" : "live", paused ? "paused; tracing goes on" : "live");
    }
    this.pause.disabled = false;
    label(this.pause, paused ? "Resume" : "Pause", paused ? "M1 0l9 5.5L1 11z" : "M1 0h3v11H1zM7 0h3v11H7z");
    this.remark(wait ? BUSY : "");
    this.showSessions(states);
  }

  showSessions(states) {
    this.sessions.replaceChildren(
      ...this.status.names.map((name, i) => {
        const one = element("span", "bpfnb-session");
        element("span", "bpfnb-name", one).textContent = one.title = name;
        const [rows, lost, dropped] = this.status.numbers[i] ?? []; // none where a view has them
        const parts = states[i] === "running" ? [] : [states[i]];
        if (rows != null) parts.push(`${rows.toLocaleString("en")} ${rows === 1 ? "row" : "rows"}`);
        element("span", "bpfnb-rows", one).textContent = parts.join(", ");
        if (lost) element("span", "bpfnb-loss", one).textContent = `${lost.toLocaleString("en")} lost`;
        if (dropped) element("span", "bpfnb-loss", one).textContent = `${dropped.toLocaleString("en")} dropped`;
        return one;
      }),
    );
  }

  destroy() {
    this.send({ gone: true });
    clearTimeout(this.unheard);
    this.quiet();
    for (const slot of this.slots) slot.clear();
    this.root.remove();
  }
}

// A view's place: its title, its renderer's element, one line for what went wrong.
class Slot {
  constructor(panel, number) {
    this.panel = panel;
    this.number = number;
    this.root = element("section", "bpfnb-view", panel.views);
    this.title = element("div", "bpfnb-title", this.root);
    this.body = element("div", "bpfnb-body", this.root);
    this.line = element("div", "bpfnb-said", this.root);
    this.line.setAttribute("role", "status");
    this.body.bpfnbSlot = this; // not "slot", which elements have
    panel.sizes.observe(this.body);
    this.renderer = this.kind = null;
  }

  take(whole, header, buffers) {
    try {
      if (header.title !== undefined) this.name(header.title);
      if (header.error !== undefined) return this.fail(header.error);
      if (whole) this.make(header.kind).whole(header, buffers);
      else this.renderer?.delta(header, buffers);
    } catch (error) {
      console.error(error);
      this.fail(`cannot be drawn: ${error.message}`);
    }
  }

  // What the panel's head says is not said again: the name of its only session.
  name(title) {
    const { names } = this.panel.status;
    this.title.textContent = this.title.title = title;
    this.title.hidden = !title || (names.length === 1 && title === names[0]);
    this.root.setAttribute("aria-label", title || names.join(", "));
  }

  make(kind) {
    if (this.kind === kind && this.renderer) return this.renderer;
    this.clear();
    this.body.replaceChildren(); // what went wrong before
    const renderer = renderers[kind];
    if (!renderer) throw new Error(`no view of kind ${kind}`);
    this.kind = kind;
    this.root.dataset.kind = kind;
    this.renderer = renderer(this.body, this.page());
    this.resize(this.body.clientWidth);
    return this.renderer;
  }

  page() {
    const { panel, number } = this;
    return {
      theme: () => theme(panel.root),
      choose: (choices) => panel.send({ choose: number, choices }),
      brush: (from, to) => panel.send({ brush: [from, to] }),
      still: matchMedia("(prefers-reduced-motion: reduce)").matches,
    };
  }

  resize(width) {
    if (width > 0 && this.renderer) this.renderer.resize(width);
  }

  say(text) {
    this.line.textContent = text;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => (this.line.textContent = ""), SAID_FOR);
  }

  fail(text) {
    this.clear();
    this.body.replaceChildren();
    element("div", "bpfnb-error", this.body).textContent = text;
  }

  clear() {
    clearTimeout(this.timer);
    this.renderer?.destroy();
    this.renderer = this.kind = null;
  }
}

function button(parent, text, path, pressed) {
  const made = element("button", "", parent);
  made.type = "button";
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 11 11");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  made.append(svg, element("span", ""));
  made.addEventListener("click", pressed);
  label(made, text, path);
  return made;
}

function label(made, text, path) {
  made.querySelector("span").textContent = text;
  made.setAttribute("aria-label", text);
  if (path) made.querySelector("path").setAttribute("d", path);
}

export default { render };
