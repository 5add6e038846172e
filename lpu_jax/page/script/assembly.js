"use strict";
// The program as text. Only the lines in view are elements, so a million of them scroll as well as a hundred.

const LINE_HEIGHT = 18;
const MAX_SCROLL = 8000000; // browsers end elements somewhere above this; longer texts scroll in larger steps

class Assembly {
  constructor(app, parts) {
    Object.assign(this, { app, program: app.program }, parts);
    this.lines = this.allLines();
    this.shown = null; // rows that match, if only these are shown
    this.matches = [];
    this.matching = new Set();
    this.current = -1;
    this.box.addEventListener("scroll", () => this.app.invalidate("assembly"));
    this.content.addEventListener("click", (event) => {
      const line = event.target.closest(".line");
      if (line && line.dataset.row) this.app.select(Number(line.dataset.row), null, true);
    });
    this.search.addEventListener("input", () => this.find());
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.step(event.shiftKey ? -1 : 1);
    });
    this.only.addEventListener("change", () => this.filter());
    this.next.addEventListener("click", () => this.step(1));
    this.previous.addEventListener("click", () => this.step(-1));
  }

  /** Rows in order, and -1 - number before the rows of each block. */
  allLines() {
    const lines = [];
    this.app.clock.blocks.forEach((block, number) => {
      lines.push(-1 - number);
      for (let row = block.first; row < block.stop; row++) lines.push(row);
    });
    return lines;
  }

  get list() {
    return this.shown || this.lines;
  }

  /** Pixels of all lines, and by how much scrolling is shrunk. */
  scale() {
    const full = this.list.length * LINE_HEIGHT, height = Math.min(full, MAX_SCROLL), view = this.box.clientHeight;
    return { height, ratio: full > height ? (full - view) / (height - view) : 1 };
  }

  draw() {
    const { height, ratio } = this.scale();
    this.spacer.style.height = `${height}px`;
    const top = this.box.scrollTop, first = Math.max(0, Math.floor(top * ratio / LINE_HEIGHT) - 5);
    const last = Math.min(this.list.length, first + Math.ceil(this.box.clientHeight / LINE_HEIGHT) + 12);
    this.content.style.transform = `translateY(${top - (top * ratio - first * LINE_HEIGHT)}px)`;
    this.content.replaceChildren(...this.list.slice(first, last).map((row) => this.line(row)));
  }

  line(row) {
    if (row < 0) {
      const block = this.program.blocks[-1 - row];
      const trips = block.iterations > 1 ? `, ${count(block.iterations)} trips of ${count(block.cycles)} cycles` : "";
      return element("div", "line block", `block ${-1 - row}, ${block.kind}: from cycle ${count(block.start)}${trips}`);
    }
    const [at, queue, text, note] = this.parts(row), space = text.indexOf(" ");
    const made = element("div", "line", element("span", "at", `${at.padStart(7)}  ${queue.padEnd(8)} `),
      element("span", "op", space < 0 ? text : text.slice(0, space)), space < 0 ? "" : text.slice(space),
      element("span", "note", note ? `   ; ${note}` : ""));
    made.dataset.row = row;
    if (this.matching.has(row)) made.classList.add("found");
    if (row === this.app.view.row) made.classList.add("chosen");
    return made;
  }

  /** Cycle in the iteration, queue, instruction, and module with source line. */
  parts(row) {
    const { rows, chip } = this.program, module = this.app.moduleOf(row), source = this.app.sourceOf(row);
    return [String(rows.start[row]), chip.queues[rows.queue[row]][0], this.program.text[row], [module, source].filter(Boolean).join("  ")];
  }

  // Search ----------------------------------------------------------------------------------------------------------

  /** Finds the rows that hold all words of the search, in any case, and goes to the first one from here on. */
  find() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    this.matches = [];
    if (words.length) {
      const names = this.program.names.map((pair) => pair.join(" ").toLowerCase());
      const queues = this.program.chip.queues.map((queue) => queue[0].toLowerCase());
      const { rows, ops } = this.program;
      for (let row = 0; row < this.program.text.length; row++) {
        const text = this.program.text[row].toLowerCase(), queue = queues[rows.queue[row]];
        const name = rows.op[row] < 0 ? "" : names[ops.name[rows.op[row]]];
        if (words.every((word) => text.includes(word) || queue.includes(word) || name.includes(word))) this.matches.push(row);
      }
    }
    this.matching = new Set(this.matches);
    const here = this.app.view.row === null ? -1 : this.app.view.row;
    this.current = this.matches.findIndex((row) => row >= here) - 1;
    this.filter();
    if (this.matches.length) this.step(1, false);
  }

  step(direction, select = true) {
    if (!this.matches.length) return;
    this.current = (this.current + direction + this.matches.length) % this.matches.length;
    this.showCount();
    if (select) this.app.select(this.matches[this.current], null, true);
    this.reveal(this.matches[this.current]);
  }

  showCount() {
    const words = this.search.value.trim();
    this.found.textContent = !words ? "" : this.matches.length ? `${count(this.current + 1)} of ${count(this.matches.length)}` : "none";
  }

  filter() {
    this.shown = this.only.checked && this.search.value.trim() ? this.matches : null;
    this.showCount();
    this.app.invalidate("assembly");
  }

  /** Scrolls to a row if it is not in view. */
  reveal(row) {
    const index = this.list.indexOf(row), { height, ratio } = this.scale();
    this.spacer.style.height = `${height}px`;
    const top = this.box.scrollTop * ratio, at = index * LINE_HEIGHT;
    if (index >= 0 && (at < top || at + LINE_HEIGHT > top + this.box.clientHeight)) {
      this.box.scrollTop = Math.max(0, at - this.box.clientHeight / 3) / ratio;
    }
    this.app.invalidate("assembly");
  }
}
