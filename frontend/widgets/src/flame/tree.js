// A tree of functions: nodes by number, callers before those they call; node 0 is the root, its own parent. Children are
// sorted when somebody looks at them, so that a tree of hundreds of thousands is there at once.

export class Tree {
  constructor(names, kinds, parent, nameOf, own, before) {
    Object.assign(this, { names, kinds, parent, nameOf, own, before });
    this.bySize = false;
    this.count();
  }

  // What is counted in each node and all below it; who has whom for children. After `own` has changed.
  count() {
    const { parent, own, before } = this;
    const n = parent.length;
    this.total = Float64Array.from(own);
    this.totalBefore = before && Float64Array.from(before);
    const begin = (this.begin = new Int32Array(n + 2));
    for (let i = n - 1; i > 0; i--) {
      this.total[parent[i]] += this.total[i];
      if (before) this.totalBefore[parent[i]] += this.totalBefore[i];
      if (this.counted(i)) begin[parent[i] + 2]++;
    }
    for (let i = 2; i < n + 2; i++) begin[i] += begin[i - 1];
    this.children = new Int32Array(begin[n + 1]);
    for (let i = 1; i < n; i++) if (this.counted(i)) this.children[begin[parent[i] + 1]++] = i;
    this.sorted = new Uint8Array(n);
    this.start = new Float64Array(n); // where a node begins, in what is counted; right once it was looked at
    this.depth = new Int16Array(n);
    this.deepest = 0;
    for (let i = 1; i < n; i++) {
      this.depth[i] = this.depth[parent[i]] + 1;
      if (this.counted(i)) this.deepest = Math.max(this.deepest, this.depth[i]);
    }
  }

  counted(i) {
    return this.total[i] > 0 || (this.before && this.totalBefore[i] > 0);
  }

  // The children of a node that count anything, in order.
  of(node) {
    const part = this.children.subarray(this.begin[node], this.begin[node + 1]);
    if (this.sorted[node]) return part;
    this.sorted[node] = 1;
    const { names, nameOf, total } = this;
    if (this.bySize) part.sort((a, b) => total[b] - total[a] || a - b);
    else part.sort((a, b) => compare(names[nameOf[a]], names[nameOf[b]]) || a - b);
    let at = this.start[node];
    for (const child of part) {
      this.start[child] = at;
      at += total[child];
    }
    return part;
  }

  // Have `start` be right for a node, wherever it is.
  place(node) {
    for (const above of this.path(node)) this.of(above);
    return this.start[node];
  }

  // From the root to the node.
  path(node) {
    const path = [node];
    while (path[0]) path.unshift(this.parent[path[0]]);
    return path;
  }

  order(bySize) {
    this.bySize = bySize;
    this.sorted.fill(0);
  }

  name(node) {
    return node ? plain(this.names[this.nameOf[node]]) : this.rootName ?? "all";
  }

  kind(node) {
    return this.kinds[this.nameOf[node]];
  }

  // The nodes whose names are `found`, by number of the name: {nodes, share, total}. What is below another is not
  // counted twice.
  match(found, within = 0) {
    const { parent, nameOf, total } = this;
    const inside = new Uint8Array(parent.length); // 1: in `within`; 2: in one that was found
    inside[within] = found[nameOf[within]] && within ? 3 : 1;
    let [nodes, sum] = inside[within] & 2 ? [1, total[within]] : [0, 0];
    for (let i = within + 1; i < parent.length; i++) {
      const above = inside[parent[i]];
      if (!(above & 1)) continue;
      inside[i] = above;
      if (!total[i] || !found[nameOf[i]]) continue;
      nodes++;
      if (!(above & 2)) sum += total[i];
      inside[i] = 3;
    }
    return { nodes, total: sum, share: total[within] ? sum / total[within] : 0 };
  }

  // Two trees about one function: who called it, and what it called. Where it calls itself, its outermost call counts.
  sandwich(name) {
    const { parent, nameOf, own, total } = this;
    const [callers, callees] = [new Grower(this, name), new Grower(this, name)];
    const place = new Int32Array(parent.length).fill(-1); // of a node among the callees
    for (let i = 1; i < parent.length; i++) {
      if (!total[i] && !(this.before && this.totalBefore[i])) continue;
      const above = place[parent[i]];
      if (above >= 0) place[i] = callees.child(above, nameOf[i]);
      else if (nameOf[i] === name) {
        place[i] = 0;
        let at = 0;
        for (let up = parent[i]; up; up = parent[up]) at = callers.child(at, nameOf[up]);
        callers.add(at, total[i], this.before && this.totalBefore[i]);
      } else continue;
      callees.add(place[i], own[i], this.before && this.before[i]);
    }
    return [callers.tree(), callees.tree()];
  }
}

// A tree that is made node by node.
class Grower {
  constructor(from, name) {
    Object.assign(this, { from, parent: [0], nameOf: [name], own: [0], before: from.before ? [0] : null });
    this.known = new Map();
  }

  child(node, name) {
    const key = node * this.from.names.length + name;
    let found = this.known.get(key);
    if (found === undefined) {
      found = this.parent.push(node) - 1;
      this.nameOf.push(name);
      this.own.push(0);
      this.before?.push(0);
      this.known.set(key, found);
    }
    return found;
  }

  add(node, value, before) {
    this.own[node] += value;
    if (this.before) this.before[node] += before;
  }

  tree() {
    const { names, kinds } = this.from;
    const before = this.before && Float64Array.from(this.before);
    const tree = new Tree(
      names, kinds, Int32Array.from(this.parent), Int32Array.from(this.nameOf), Float64Array.from(this.own), before,
    );
    tree.rootName = plain(names[this.nameOf[0]]);
    tree.swapped = this.from.swapped;
    return tree;
  }
}

// A name without flamegraph.pl's annotation: colour and words say the same.
export function plain(name) {
  return name.replace(/^py::(?=.)|(?<=.)_\[[kijw]\]$/g, "") || "(no name)";
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}
