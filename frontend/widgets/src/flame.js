// A flame graph of one moment, in a notebook's output or a page of its own: an anywidget module, whose model has all of
// it. What moves is the panel's (panel.js).

import css from "./panel.css";
import { onThemeChange, theme } from "./theme.js";
import { flame } from "./views/flame.js";

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = `bpfnb-panel bpfnb-live-${model.get("mark")}`;
  root.dataset.lmSuppressShortcuts = "true"; // a key pressed here is not JupyterLab's
  const style = document.createElement("style");
  style.textContent = css;
  const title = document.createElement("div");
  title.className = "bpfnb-title";
  title.textContent = model.get("header").title;
  root.append(style, title);
  el.append(root);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const view = flame(root, { theme: () => theme(root), choose() {}, brush() {}, still });
  const draw = () => view.whole({ ...model.get("header") }, model.get("data"));
  draw();
  const sizes = new ResizeObserver(() => view.resize());
  sizes.observe(root);
  const quiet = onThemeChange(draw);
  return () => {
    sizes.disconnect();
    quiet();
    view.destroy();
    root.remove();
  };
}

export default { render };
