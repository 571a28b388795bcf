// The panel in the browser: an anywidget module.

import { views } from "./views/index.js";

function render({ model, el }) {
  el.textContent = `bpfnb: ${Object.keys(views).length} kinds of views`;
}

export default { render };
