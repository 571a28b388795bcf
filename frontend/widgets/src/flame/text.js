// Values with their unit, and shares, as a person reads them.

const TIMES = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]];
const BYTES = [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "B"]];

export function amount(value, unit) {
  const units = unit === "ns" ? TIMES : unit === "bytes" ? BYTES : null;
  if (!units) return number(value);
  const [scale, name] = units.find(([size]) => Math.abs(value) >= size) ?? units[units.length - 1];
  return `${digits(value / scale)} ${name}`;
}

// The value to its last digit, where `amount` has rounded it.
export function exact(value, unit) {
  const short = amount(value, unit);
  const long = `${number(value)} ${unit === "count" ? "" : unit}`.trim();
  return unit === "count" || short === long ? short : `${short} (${long})`;
}

export function percent(share) {
  const value = 100 * share;
  if (!Number.isFinite(value)) return "–";
  if (value === 0 || value >= 99.95) return `${value.toFixed(0)} %`;
  return value < 0.05 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}

function number(value) {
  return value.toLocaleString("en", { maximumFractionDigits: 2 });
}

function digits(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3).replace(/\.?0+$/, "");
}
