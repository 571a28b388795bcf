// Counts of events in intervals, as the page keeps them: by the interval's number, which begins number * step seconds
// after 1970. Python says which intervals are known, and for how long each was traced; see views/live/rates.py.

// Counts of consecutive intervals; 0 for those before `first`.
export class Track {
  constructor(first) {
    this.first = first;
    this.data = [];
  }

  put(first, counts) {
    if (!this.data.length) this.first = first;
    if (first < this.first) {
      this.data = new Array(this.first - first).fill(0).concat(this.data);
      this.first = first;
    }
    const start = first - this.first;
    while (this.data.length < start) this.data.push(0);
    counts.forEach((count, i) => (this.data[start + i] = count));
  }

  get(number) {
    return this.data[number - this.first] ?? 0;
  }

  trim(oldest) {
    if (oldest - this.first < 1000) return; // not at each frame
    this.data.splice(0, oldest - this.first);
    this.first = oldest;
  }
}

// What Python's messages amount to.
export class Rates {
  whole(header, buffers) {
    Object.assign(this, { lines: [], totals: [], sources: [], until: 0 }, header);
    this.totals = header.sources.map(() => new Track(header.first));
    this.delta(header, buffers);
  }

  delta(header, [buffer]) {
    const { first, until } = header;
    if (header.sources) this.sources = header.sources;
    if (header.lines) this.lines = this.merged(header.lines, first);
    let at = 0;
    const next = (count) => {
      const counts = [];
      for (let i = 0; i < count; i++, at += 4) counts.push(buffer.getUint32(at, true));
      return counts;
    };
    this.until = until;
    for (const track of this.totals) track.put(first, next(until - first));
    for (const line of this.lines) {
      if (!line.counts) continue;
      const from = line.new ? line.from : first;
      line.counts.put(from, next(until - from));
      line.new = false;
    }
    const oldest = until - this.kept;
    for (const track of [...this.totals, ...this.lines.map((line) => line.counts)]) track?.trim(oldest);
  }

  // Lines that were shown before keep their counts; `slot` tells which they are, and their colour.
  merged(lines) {
    const before = new Map(this.lines.map((line) => [line.slot, line]));
    return lines.map((line) => {
      const value = line.from !== null;
      const counts = !value ? null : line.new ? new Track(line.from) : before.get(line.slot)?.counts;
      return { ...line, counts, id: `${line.source} ${line.label}` };
    });
  }

  get oldest() {
    const known = this.sources.map((source) => source.oldest).filter((oldest) => oldest !== null);
    return known.length ? Math.max(Math.min(...known), this.until - this.kept) : this.until;
  }

  // For how many seconds an interval of a source was traced; null where that is not known, or too short.
  seconds(source, number) {
    const { oldest, until, parts, gaps } = this.sources[source];
    if (oldest === null || number < oldest || number >= (until ?? this.until)) return null;
    for (const [begin, end] of gaps) if (number >= begin && number < end) return null;
    for (const [part, length] of parts) if (part === number) return length || null;
    return this.step;
  }

  // Events per second of each line in an interval, then of all that have no line; null where that is not known.
  rates(number) {
    const lengths = this.sources.map((_, source) => this.seconds(source, number));
    const rest = this.totals.map((track) => track.get(number));
    const rates = this.lines.map(({ source, counts }) => {
      const count = counts ? counts.get(number) : rest[source];
      if (counts) rest[source] -= count;
      return lengths[source] === null ? null : count / lengths[source];
    });
    if (this.by) {
      const known = rest.filter((_, source) => lengths[source] !== null);
      const of = lengths.filter((length) => length !== null);
      rates.push(known.length ? known.reduce((sum, count, i) => sum + count / of[i], 0) : null);
    }
    return rates;
  }
}
