// Latency and lag of the model, and the contents of its cache, drawn to scale.

const HISTORY = 60;
const GAP_PX = 1;
const NAMES = {
  prompt: "Prompt",
  sink: "Text sink",
  window: "Recent text",
  query: "Query",
  vision: "Video",
  text: "Replies",
};

export class Gauges {
  constructor(byId) {
    this.byId = byId;
    this.cache = new CacheBar(byId("cache"), byId("legend"), byId("fill"));
    this.clear();
  }

  clear() {
    this.ages = [];
    for (const id of ["age", "pace", "lag-s", "dropped"]) this.byId(id).textContent = "–";
    this.byId("age-line").firstElementChild.setAttribute("points", "");
    this.cache.clear();
  }

  line({ age_s: ageS }) {
    if (ageS === null) return;
    this.ages = [...this.ages, ageS].slice(-HISTORY);
    figure(this.byId("age"), ageS < 10 ? ageS.toFixed(2) : ageS.toFixed(0), "s");
    this.byId("age-line").firstElementChild.setAttribute("points", polyline(this.ages));
  }

  state(state) {
    figure(this.byId("pace"), state.realtime_factor.toFixed(1), "× real time");
    figure(this.byId("lag-s"), state.lag_s.toFixed(1), "s");
    figure(this.byId("dropped"), state.dropped_s.toFixed(0), "s");
    this.cache.draw(state.cache);
  }
}

// Each span of tokens is a block, as wide as its share of the cache. A turn keeps its element until it is evicted, so its
// block visibly moves along and leaves.
class CacheBar {
  constructor(bar, legend, fill) {
    Object.assign(this, { bar, legend, fill });
    this.blocks = new Map();
  }

  clear() {
    this.bar.replaceChildren();
    this.legend.replaceChildren();
    this.blocks.clear();
    this.drawn = null;
    this.fill.textContent = "empty";
    this.bar.setAttribute("aria-label", "The cache is empty");
  }

  redraw() {
    if (this.drawn) this.draw(this.drawn);
  }

  draw(cache) {
    this.drawn = cache;
    const { num_tokens: numTokens, capacity_tokens: capacityTokens, spans } = cache;
    const width = this.bar.clientWidth;
    const scale = width / Math.max(capacityTokens ?? 0, numTokens, 1);
    const kept = new Set();
    let start = 0;
    for (const [name, block] of named(spans)) {
      kept.add(name);
      this.#place(name, block, start * scale, Math.max(1, block.tokens * scale - GAP_PX));
      start += block.tokens;
    }
    for (const [name, element] of this.blocks) if (!kept.has(name)) this.#leave(name, element);
    this.#describe(spans, numTokens, capacityTokens);
  }

  #place(name, { kind }, left, width) {
    let element = this.blocks.get(name);
    if (!element) {
      element = document.createElement("i");
      element.className = kind;
      element.style.transform = `translateX(${this.bar.clientWidth}px)`;
      element.style.width = `${width}px`;
      this.bar.append(element);
      this.blocks.set(name, element);
      element.getBoundingClientRect(); // forces a layout at the start position, so that the move is animated
    }
    element.style.transform = `translateX(${left}px)`;
    element.style.width = `${width}px`;
  }

  #leave(name, element) {
    this.blocks.delete(name);
    element.classList.add("leaving");
    setTimeout(() => element.remove(), 600);
  }

  #describe(spans, numTokens, capacityTokens) {
    const totals = new Map();
    for (const [kind, tokens] of spans) totals.set(kind, (totals.get(kind) ?? 0) + tokens);
    const numSeconds = new Set(spans.filter(([kind]) => kind === "vision").map(([, , turn]) => turn)).size;
    const entries = Object.keys(NAMES).filter((kind) => totals.has(kind));
    const label = (kind) => (kind === "vision" ? `${numSeconds} s of video` : NAMES[kind]);
    this.legend.replaceChildren(...entries.map((kind) => legendEntry(kind, label(kind), totals.get(kind))));
    this.fill.textContent = capacityTokens
      ? `${numTokens} of ${capacityTokens} tokens`
      : `${numTokens} tokens, unbounded`;
    const summary = entries.map((kind) => `${label(kind)} ${totals.get(kind)} tokens`).join(", ");
    this.bar.setAttribute("aria-label", `The cache holds ${this.fill.textContent}: ${summary}`);
  }
}

// Stable names for the blocks: kind, turn, and index among the turn's blocks of this kind.
function* named(spans) {
  const counts = new Map();
  for (const [kind, tokens, turn] of spans) {
    const stem = `${kind} ${turn ?? ""}`;
    const count = counts.get(stem) ?? 0;
    counts.set(stem, count + 1);
    yield [`${stem} ${count}`, { kind, tokens }];
  }
}

function legendEntry(kind, label, tokens) {
  const entry = document.createElement("div");
  const name = document.createElement("dt");
  name.className = kind;
  name.textContent = label;
  const value = document.createElement("dd");
  value.textContent = tokens;
  entry.append(name, value);
  return entry;
}

function figure(element, number, unit) {
  const small = document.createElement("small");
  small.textContent = ` ${unit}`;
  element.replaceChildren(number, small);
}

function polyline(values) {
  const most = Math.max(...values, 0.05);
  return values.map((value, index) => `${index},${(15 - (14 * value) / most).toFixed(1)}`).join(" ");
}
