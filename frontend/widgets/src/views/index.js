// The renderers of views, by kind. A renderer is a function:
//
//     make(root, page) -> { whole(header, buffers), delta(header, buffers), resize(width), destroy() }
//
// root: an empty element of the view's own. page: what the panel offers:
//     page.theme()         {ink, muted, line, background, series: [colour, ...]} of the page as it is now
//     page.choose(choices) sends what a person chose to the view's Python side (View.choose)
//     page.brush(from, to) tells Python a range of time that was brushed (seconds since 1970)
//     page.still           whether motion is to be reduced
// buffers: DataViews. Text from Python is somebody else's: textContent, never innerHTML.

import { counters } from "./counters.js";
import { flame } from "./flame.js";
import { heatmap } from "./heatmap.js";
import { hist } from "./hist.js";
import { rates } from "./rates.js";
import { top } from "./top.js";

export const views = { counters, flame, heatmap, hist, rates, top };
