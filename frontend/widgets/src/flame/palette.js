// Colours of frames by their kind, for light and dark pages. The kinds are those of bpfnb/results/flame/kinds.py, in its
// order; bpfnb/views/plots/flame.py has the same colours: a test compares them, and measures the contrast of text on
// every one (at least 4.5:1, WCAG 2.2 AA). Found by a search for what differs most in normal sight and in simulated
// protanopia, deuteranopia and tritanopia: at least 0.076 in OKLab on light pages, 0.066 on dark ones.

export const KINDS = ["group", "native", "kernel", "Python", "compiled at run time", "unknown"];

const LIGHT = {
  ink: "#1b1f24",
  fills: ["#d4d7d8", "#a2c4fe", "#ffb166", "#dcfca2", "#d585e1", "#a2a2a2"],
  muted: "#eceef0", // what a search has not found
  less: "#4393c3", same: "#f1f1f1", more: "#e8775f",
};
const DARK = {
  ink: "#f7f9fb",
  fills: ["#2c2e31", "#153b72", "#662c09", "#596b20", "#804081", "#474142"],
  muted: "#24272b",
  less: "#1f66a8", same: "#3a3d41", more: "#a8321f",
};
const SHADES = 3; // neighbours of one kind are told apart by them
const STEPS = 8; // of a difference, to either side

// -> {ink, muted, fills: [[shade, ...] of each kind], changes: [2 * STEPS + 1 colours, from all less to all more]}
export function palette(dark) {
  const base = dark ? DARK : LIGHT;
  const fills = base.fills.map((colour) => [0, 1, 2].map((i) => mix(colour, dark ? "#000000" : "#ffffff", i * 0.11)));
  const changes = [];
  for (let i = -STEPS; i <= STEPS; i++) {
    changes.push(mix(base.same, i < 0 ? base.less : base.more, Math.sqrt(Math.abs(i) / STEPS)));
  }
  return { ink: base.ink, muted: base.muted, fills, changes };
}

// The shade of a name: always the same.
export function shade(name) {
  let hash = 7;
  for (let i = 0; i < name.length && i < 64; i++) hash = (hash * 31 + name.charCodeAt(i)) | 0;
  return Math.abs(hash) % SHADES;
}

// What a change from `before` to `now` is in `changes`: -1, all of it gone, is the first, 1, all of it new, the last.
export function changeStep(now, before) {
  const most = Math.max(now, before);
  return STEPS + (most > 0 ? Math.round(((now - before) / most) * STEPS) : 0);
}

function mix(from, to, share) {
  const parts = [1, 3, 5].map((i) => {
    const [a, b] = [from, to].map((colour) => parseInt(colour.slice(i, i + 2), 16));
    return Math.round(a + (b - a) * share).toString(16).padStart(2, "0");
  });
  return `#${parts.join("")}`;
}
