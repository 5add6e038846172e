"use strict";
// What all views share (the cycle, the part in view, the selected row), and who is drawn anew when it changes.

const get = (id) => document.getElementById(id);

class App {
  constructor(program) {
    this.program = program;
    this.clock = new Clock(program);
    this.view = { from: 0, to: this.clock.cycles, cycle: 0, moment: 0, row: null, base: 0, sources: [], targets: [], module: null };
    this.dirty = new Set();
    this.playing = false;
    readTheme();
    this.timeline = new Timeline(this, get("timeline"));
    this.overview = new Overview(this, get("overview"), this.timeline);
    this.floorPlan = new FloorPlan(this, get("floorplan"));
    this.sram = new SramMap(this, get("sram"), get("sram-legend"), get("sram-use"));
    this.tree = new Tree(this, get("tree"));
    this.assembly = new Assembly(this, {
      box: get("assembly"), spacer: get("assembly-height"), content: get("assembly-lines"), search: get("search"),
      found: get("found"), only: get("only"), next: get("next"), previous: get("previous"),
    });
    fillReport(get("tab-report"), program);
    this.fillLegend();
    this.listen();
    this.goTo(this.firstBusyCycle());
  }

  fillLegend() {
    for (const [color, text] of LEGEND) {
      const swatch = element("i");
      swatch.style.background = `var(--${color})`;
      get("legend").append(element("span", "", swatch, text));
    }
  }

  /** A moment at which there is something to see: shortly after the first instruction that belongs to an operation. */
  firstBusyCycle() {
    const { rows } = this.program;
    for (const block of this.clock.blocks) {
      for (let row = block.first; row < block.stop; row++) {
        if (rows.op[row] >= 0) return Math.min(this.clock.cycles - 1, block.start + rows.start[row] + 12);
      }
    }
    return 0;
  }

  // Drawing -----------------------------------------------------------------------------------------------------------

  /** Asks for views to be drawn at the next frame; all of them without names. */
  invalidate(...names) {
    for (const name of names.length ? names : ["timeline", "overview", "floorplan", "sram", "assembly"]) this.dirty.add(name);
    if (!this.frame) this.frame = requestAnimationFrame((time) => this.draw(time));
  }

  draw(time) {
    this.frame = 0;
    if (this.playing) this.advance(time);
    const dirty = this.dirty;
    this.dirty = new Set();
    if (dirty.has("timeline")) this.timeline.draw();
    if (dirty.has("overview")) this.overview.draw();
    if (dirty.has("floorplan")) this.floorPlan.draw();
    if (dirty.has("sram") && !get("tab-sram").hidden) this.sram.draw();
    if (dirty.has("assembly") && !get("tab-assembly").hidden) this.assembly.draw();
    if (this.playing) this.invalidate("floorplan");
  }

  // Time --------------------------------------------------------------------------------------------------------------

  /** Shows the cycles from .. to, at least 8 of them and none outside the program. */
  show(from, to) {
    const length = Math.min(this.clock.cycles, Math.max(8, to - from));
    const start = Math.max(0, Math.min(from + (to - from - length) / 2, this.clock.cycles - length));
    Object.assign(this.view, { from: start, to: start + length });
    this.invalidate("timeline", "overview");
  }

  /** Makes the part in view `factor` times as long around a cycle. */
  zoom(factor, around = (this.view.from + this.view.to) / 2) {
    const { from, to } = this.view, length = Math.min(this.clock.cycles, Math.max(8, (to - from) * factor));
    const left = around - (around - from) * length / (to - from);
    this.show(left, left + length);
  }

  /** Makes a cycle the present one; the timeline moves along if it is out of view. */
  goTo(cycle, moment = cycle) {
    const { from, to } = this.view;
    const clamped = Math.max(0, Math.min(this.clock.cycles - 1, cycle));
    Object.assign(this.view, { cycle: clamped, moment: Math.max(clamped, moment) });
    if (clamped < from || clamped >= to) this.show(clamped - (to - from) * 0.1, clamped + (to - from) * 0.9);
    get("cycle").value = clamped;
    get("scrub").value = clamped;
    const { block, iteration, elapsed } = this.clock.place(clamped), found = this.clock.blocks[block];
    get("where").textContent = found && found.iterations > 1
      ? `trip ${count(iteration + 1)} of ${count(found.iterations)}, cycle ${count(elapsed)}` : `block ${block}, cycle ${count(elapsed)}`;
    this.invalidate("timeline", "overview", "floorplan", "sram");
  }

  play(isPlaying) {
    this.playing = isPlaying;
    this.lastTime = null;
    get("play").textContent = isPlaying ? "❚❚ stop" : "▶\uFE0E play";
    if (isPlaying && this.view.cycle >= this.clock.cycles - 1) this.goTo(0);
    if (!isPlaying) this.goTo(this.view.cycle);
    this.invalidate("floorplan");
  }

  /** Lets time pass since the last frame. */
  advance(time) {
    const passed = this.lastTime === null ? 0 : Math.min(100, time - this.lastTime);
    this.lastTime = time;
    const moment = this.view.moment + Number(get("speed").value) * passed / 1000;
    if (moment >= this.clock.cycles - 1) {
      this.play(false);
      this.goTo(this.clock.cycles - 1);
    } else if (Math.floor(moment) !== this.view.cycle) {
      this.goTo(Math.floor(moment), moment);
    } else {
      this.view.moment = moment;
    }
  }

  // Rows and modules ----------------------------------------------------------------------------------------------------

  moduleOf(row) {
    const op = this.program.rows.op[row];
    return op < 0 ? "" : this.program.names[this.program.ops.name[op]][0];
  }

  sourceOf(row) {
    const op = this.program.rows.op[row];
    return op < 0 ? "" : this.program.names[this.program.ops.name[op]][1];
  }

  /** What a row does and for whom, as text; `base` is the cycle at which its iteration begins. */
  describe(row, base) {
    const { rows, chip, text } = this.program, start = base + rows.start[row], last = start + (rows.count[row] - 1) * rows.interval[row];
    const when = last === start ? `cycle ${count(start)}` : `cycles ${count(start)} .. ${count(last)}`;
    const who = [this.moduleOf(row), this.sourceOf(row)].filter(Boolean).join(", ");
    return `${when}: ${chip.queues[rows.queue[row]][0]} ${text[row]}${who ? `\n${who}` : ""}`;
  }

  /** Selects a row in an iteration of its block; null keeps the present iteration if the block is the same. */
  select(row, iteration = null, move = false) {
    const number = this.clock.blockOf(row), block = this.clock.blocks[number], here = this.clock.place(this.view.cycle);
    const trip = iteration === null ? (here.block === number ? here.iteration : 0) : iteration;
    const base = block.start + trip * block.period;
    Object.assign(this.view, { row, base, ...this.linksOf(row) });
    const [what, who] = this.describe(row, base).split("\n"), links = this.linkText();
    get("inspector").replaceChildren(element("b", "", what), who ? `   ${who}` : "", links ? `   ${links}` : "");
    get("inspector").title = [what, who, links].filter(Boolean).join("\n");
    this.assembly.reveal(row);
    if (move) this.timeline.reveal(this.program.rows.queue[row]);
    const begin = this.clock.begin[row] + base, end = this.clock.end[row] + base;
    if (move && (end < this.view.from || begin > this.view.to || this.view.to - this.view.from > 200 * (end - begin + 50))) {
      this.show(begin - 150, begin + 450);
    }
    if (this.view.cycle < begin || this.view.cycle >= end) this.goTo(begin);
    this.invalidate();
  }

  /** {sources, targets}: rows whose values a row takes, and rows that take its values from the streams. */
  linksOf(row) {
    const { from, to } = this.program.links, sources = [], targets = [];
    for (let i = 0; i < from.length; i++) {
      if (to[i] === row) sources.push(from[i]);
      if (from[i] === row) targets.push(to[i]);
    }
    return { sources, targets };
  }

  /** The queues that the selected row takes values from and gives values to. */
  linkText() {
    const names = (rows) => {
      const found = [...new Set(rows.map((row) => this.program.chip.queues[this.program.rows.queue[row]][0]))];
      return found.slice(0, 6).join(", ") + (found.length > 6 ? ` and ${found.length - 6} more` : "");
    };
    const { sources, targets } = this.view;
    return [sources.length ? `from ${names(sources)}` : "", targets.length ? `to ${names(targets)}` : ""].filter(Boolean).join("   ");
  }

  zoomToRow() {
    const { row, base } = this.view;
    if (row === null) return;
    const length = this.clock.end[row] - this.clock.begin[row];
    this.show(this.clock.begin[row] + base - length, this.clock.end[row] + base + length);
  }

  /** Marks the rows of a module or source line, a path of names with slashes; null marks none. */
  markModule(path) {
    this.view.module = path;
    this.tree.choose(path);
    const { rows, ops, names } = this.program;
    const inside = names.map((pair) => {
      const whole = `${pair[0] || "(unnamed)"}/${pair[1] || "(no source)"}`;
      return path !== null && (whole === path || whole.startsWith(`${path}/`));
    });
    this.timeline.mark(path === null ? null : (row) => rows.op[row] >= 0 && inside[ops.name[rows.op[row]]]);
    this.invalidate("timeline");
  }

  // Tip -----------------------------------------------------------------------------------------------------------------

  tip(event, text) {
    const box = get("tip");
    box.textContent = text;
    box.hidden = false;
    const left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 8);
    const below = event.clientY + 18, fits = below + box.offsetHeight < window.innerHeight;
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${fits ? below : event.clientY - box.offsetHeight - 10}px`;
  }

  hideTip() {
    get("tip").hidden = true;
  }

  // Hands -----------------------------------------------------------------------------------------------------------------

  listen() {
    const on = (id, event, action) => get(id).addEventListener(event, action);
    get("cycle").max = get("scrub").max = this.clock.cycles - 1;
    on("zoom-in", "click", () => this.zoom(0.5, this.view.cycle));
    on("zoom-out", "click", () => this.zoom(2, this.view.cycle));
    on("zoom-fit", "click", () => this.show(0, this.clock.cycles));
    on("tall", "change", () => this.timeline.setTall(get("tall").checked));
    on("play", "click", () => this.play(!this.playing));
    on("step", "click", () => this.goTo(this.view.cycle + 1));
    on("step-back", "click", () => this.goTo(this.view.cycle - 1));
    on("cycle", "change", () => this.goTo(Math.floor(Number(get("cycle").value)) || 0));
    on("scrub", "input", () => this.goTo(Number(get("scrub").value)));
    on("scheme", "click", () => {
      const root = document.documentElement;
      root.dataset.scheme = root.dataset.scheme === "dark" ? "light" : "dark";
      readTheme();
      this.invalidate();
    });
    for (const tab of document.querySelectorAll("[data-tab]")) tab.addEventListener("click", () => this.openTab(tab.dataset.tab));
    document.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.invalidate()).observe(document.querySelector("main"));
  }

  openTab(name) {
    for (const tab of document.querySelectorAll("[data-tab]")) {
      const chosen = tab.dataset.tab === name;
      tab.setAttribute("aria-selected", String(chosen));
      get(`tab-${tab.dataset.tab}`).hidden = !chosen;
    }
    if (name === "assembly" && this.view.row !== null) this.assembly.reveal(this.view.row);
    this.invalidate("sram", "assembly");
  }

  key(event) {
    const isTyped = event.target.matches("input, select") && event.key !== "Escape";
    const isPressed = event.target.matches("button") && event.key === " "; // the button's own key
    if (isTyped || isPressed || event.ctrlKey || event.metaKey || event.altKey) return;
    const quarter = (this.view.to - this.view.from) / 4;
    const actions = {
      " ": () => this.play(!this.playing),
      ArrowRight: () => this.goTo(this.view.cycle + (event.shiftKey ? 10 : 1)),
      ArrowLeft: () => this.goTo(this.view.cycle - (event.shiftKey ? 10 : 1)),
      "+": () => this.zoom(0.5, this.view.cycle),
      "=": () => this.zoom(0.5, this.view.cycle),
      "-": () => this.zoom(2, this.view.cycle),
      0: () => this.show(0, this.clock.cycles),
      w: () => this.zoom(0.5, this.view.cycle),
      s: () => this.zoom(2, this.view.cycle),
      a: () => this.show(this.view.from - quarter, this.view.to - quarter),
      d: () => this.show(this.view.from + quarter, this.view.to + quarter),
      "/": () => {
        this.openTab("assembly");
        get("search").focus();
      },
      Escape: () => this.markModule(null),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }
}

async function start() {
  try {
    window.app = new App(await decodeProgram(get("data").textContent));
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    get("inspector").textContent = `This page could not be shown: ${error.message}. It needs a browser of 2023 or newer.`;
    throw error;
  }
}

start();
