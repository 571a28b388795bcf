// Colours of the page: JupyterLab's CSS variables where there are any, else those of the system's light or dark scheme.
// The series' colours are those of bpfnb/views/look.py, which says why: tests compare them.

export const series = ["#1296fc", "#fc5a66", "#7e5a00", "#006c96", "#009c12", "#b4246c", "#b484ba", "#7e54d8"];
export const other = "#8b9099";

const LIGHT = { ink: "#1f2328", muted: "#5c636b", line: "#d5d9de", background: "#ffffff" };
const DARK = { ink: "#e6e8eb", muted: "#a2a9b1", line: "#454b52", background: "#111315" };

// The theme of the page that `element` is on: {ink, muted, line, background, dark, series, other}
export function theme(element) {
  const style = getComputedStyle(element);
  const background = style.getPropertyValue("--jp-layout-color0").trim();
  const dark = background ? luminance(background) < 0.4 : matchMedia("(prefers-color-scheme: dark)").matches;
  const base = dark ? DARK : LIGHT;
  return {
    ink: style.getPropertyValue("--jp-ui-font-color1").trim() || base.ink,
    muted: style.getPropertyValue("--jp-ui-font-color2").trim() || base.muted,
    line: style.getPropertyValue("--jp-border-color2").trim() || base.line,
    background: background || base.background,
    dark, series, other,
  };
}

// Calls `changed` when the page's theme changes; returns what ends that.
export function onThemeChange(changed) {
  const observer = new MutationObserver(changed);
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", changed);
  return () => {
    observer.disconnect();
    scheme.removeEventListener("change", changed);
  };
}

function luminance(colour) {
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
  return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
}
