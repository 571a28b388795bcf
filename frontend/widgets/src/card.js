// The buttons of a session's card: an anywidget module, small, since its source travels with every card. Messages are
// those of bpfnb/views/live/widget.py.

const CSS = `
.bpfnb-card { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; padding: 2px 0;
  font: 13px/1.5 var(--jp-ui-font-family, system-ui, sans-serif); color: var(--jp-ui-font-color1, inherit); }
.bpfnb-card button { height: 26px; padding: 0 11px; cursor: pointer; font: inherit; color: inherit; border-radius: 4px;
  border: 1px solid var(--jp-border-color2, rgba(128, 128, 128, .35)); background: var(--jp-layout-color1, transparent); }
.bpfnb-card button:hover:not(:disabled) { background: var(--jp-layout-color2, rgba(128, 128, 128, .15)); }
.bpfnb-card button:disabled { opacity: .5; cursor: default; }
.bpfnb-card button:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }
.jupyter-widgets-disconnected:has(.bpfnb-card)::before { content: none !important; }`;
const UNHEARD = 2_000; // ms
const ACK_EVERY = 4; // updates; see pages.py

function render({ model, el }) {
  const page = Math.random().toString(36).slice(2, 10);
  const root = document.createElement("div");
  let inView = false;
  let visible = null;
  let lost = false;
  let timer;

  const send = (message) => {
    if (lost) return;
    try {
      model.send({ page, ...message });
    } catch {
      lose();
    }
  };
  // The kernel is gone: no button can do anything, and the card above is no longer green.
  const lose = () => {
    lost = true;
    root.remove();
  };
  const see = () => {
    const now = inView && !document.hidden;
    if (now !== visible) send({ visible: (visible = now) });
  };
  const button = (text, what) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", () => {
      for (const one of buttons) one.disabled = true;
      line.textContent = what.doing;
      timer = setTimeout(() => (line.textContent = what.unheard), UNHEARD);
      send({ do: what.what });
    });
    root.append(made);
    return made;
  };

  const style = document.createElement("style");
  style.textContent = CSS;
  root.className = `bpfnb-card bpfnb-live-${model.get("mark")}`;
  root.dataset.lmSuppressShortcuts = "true"; // a key pressed on a button is not JupyterLab's
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "session");
  root.append(style);
  const buttons = [
    button("Stop", {
      what: "stop",
      doing: "stopping",
      unheard: "Not stopped yet. While a cell runs, the notebook's own interrupt button (\u25a0) is heard at once.",
    }),
    button("Live", { what: "live", doing: "opening", unheard: "Opened as soon as the running cell has ended." }),
  ];
  const line = document.createElement("span");
  line.setAttribute("role", "status");
  root.append(line);
  el.append(root);

  const hear = ({ frame, text }) => {
    if (typeof frame === "number" && frame % ACK_EVERY === 0) send({ ack: frame });
    if (typeof text !== "string") return;
    clearTimeout(timer);
    line.textContent = text;
    for (const one of buttons) one.disabled = false;
  };
  const leave = () => send({ gone: true });
  const observer = new IntersectionObserver((entries) => {
    inView = entries[entries.length - 1].isIntersecting;
    see();
  });
  observer.observe(root);
  model.on("msg:custom", hear);
  model.on("comm_live_update", lose);
  document.addEventListener("visibilitychange", see);
  window.addEventListener("pagehide", leave);
  send({ ready: true });

  return () => {
    send({ gone: true });
    clearTimeout(timer);
    observer.disconnect();
    model.off("msg:custom", hear);
    model.off("comm_live_update", lose);
    document.removeEventListener("visibilitychange", see);
    window.removeEventListener("pagehide", leave);
    root.remove();
  };
}

export default { render };
