// How the model keeps up, and what it keeps in mind, drawn to scale.

const HISTORY = 60;
const GAP_PX = 1;
const NAMES = {
  prompt: "Instructions",
  sink: "First words",
  window: "Latest words",
  query: "Standing instruction",
  vision: "Pictures",
  text: "Turns",
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

// Each run of tokens is a block as wide as its share of the cache. A second's block is the same element from the second
// in which it comes until it is evicted, so that one sees it move along and leave.
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
    this.fill.textContent = "nothing yet";
    this.bar.setAttribute("aria-label", "The cache is empty");
  }

  redraw() {
    if (this.drawn) this.draw(this.drawn);
  }

  draw(cache) {
    this.drawn = cache;
    const { num_tokens: numTokens, capacity_tokens: capacityTokens, runs } = cache;
    const width = this.bar.clientWidth;
    const scale = width / Math.max(capacityTokens ?? 0, numTokens, 1);
    const kept = new Set();
    let start = 0;
    for (const [name, block] of named(runs)) {
      kept.add(name);
      this.#place(name, block, start * scale, Math.max(1, block.tokens * scale - GAP_PX));
      start += block.tokens;
    }
    for (const [name, element] of this.blocks) if (!kept.has(name)) this.#leave(name, element);
    this.#describe(runs, numTokens, capacityTokens);
  }

  #place(name, { what }, left, width) {
    let element = this.blocks.get(name);
    if (!element) {
      element = document.createElement("i");
      element.className = what;
      element.style.transform = `translateX(${this.bar.clientWidth}px)`;
      element.style.width = `${width}px`;
      this.bar.append(element);
      this.blocks.set(name, element);
      element.getBoundingClientRect(); // laid out where it comes from, before it is sent where it belongs
    }
    element.style.transform = `translateX(${left}px)`;
    element.style.width = `${width}px`;
  }

  #leave(name, element) {
    this.blocks.delete(name);
    element.classList.add("leaving");
    setTimeout(() => element.remove(), 600);
  }

  #describe(runs, numTokens, capacityTokens) {
    const totals = new Map();
    for (const [what, tokens] of runs) totals.set(what, (totals.get(what) ?? 0) + tokens);
    const numSeconds = new Set(runs.filter(([what]) => what === "vision").map(([, , turn]) => turn)).size;
    const entries = Object.keys(NAMES).filter((what) => totals.has(what));
    const label = (what) => (what === "vision" ? `${numSeconds} s of pictures` : NAMES[what]);
    this.legend.replaceChildren(...entries.map((what) => legendEntry(what, label(what), totals.get(what))));
    this.fill.textContent = capacityTokens
      ? `${numTokens} of ${capacityTokens} tokens, never more`
      : `${numTokens} tokens, without a bound`;
    const told = entries.map((what) => `${label(what)} ${totals.get(what)} tokens`).join(", ");
    this.bar.setAttribute("aria-label", `The cache holds ${this.fill.textContent}: ${told}`);
  }
}

// Names that stay with a block while it moves: by its sort, its turn, and its place among that turn's blocks.
function* named(runs) {
  const counts = new Map();
  for (const [what, tokens, turn] of runs) {
    const stem = `${what} ${turn ?? ""}`;
    const count = counts.get(stem) ?? 0;
    counts.set(stem, count + 1);
    yield [`${stem} ${count}`, { what, tokens }];
  }
}

function legendEntry(what, label, tokens) {
  const entry = document.createElement("div");
  const name = document.createElement("dt");
  name.className = what;
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
