"use strict";
// The timeline: lanes of modules, streams and SRAM on top, then one line per queue, in the order in which they lie on the
// chip.

const GROUP_GAP = 7;
const MAX_BARS = 9000; // more than that in view are drawn as densities
const MAX_LINKS = 80; // lines to makers and to takers of a selected row's values

class Timeline {
  constructor(app, canvas) {
    Object.assign(this, { app, canvas, program: app.program, clock: app.clock });
    this.scroll = 0;
    this.isTall = false; // lines as high as their text; else all of them fit where that can be
    this.groups = this.findGroups();
    this.track = new Int32Array(this.program.chip.queues.length).fill(-1);
    this.tracks = this.groups.flatMap((group) => group.queues);
    this.tracks.forEach((queue, line) => { this.track[queue] = line; });
    this.byQueue = this.clock.blocks.map((block) => this.rowsByQueue(block));
    this.lanes = new Lanes(this);
    this.density = this.makeDensity(() => true);
    this.marked = null;
    this.image = document.createElement("canvas");
    this.listen();
  }

  // Layout ----------------------------------------------------------------------------------------------------------

  /** Queues that have rows, in groups from west to east. */
  findGroups() {
    const used = new Set(this.program.rows.queue);
    const found = new Map();
    this.program.chip.queues.forEach(([, kind, hemisphere, index], queue) => {
      if (!used.has(queue)) return;
      const side = kind === "VXM" ? "" : hemisphere ? " east" : " west";
      const order = kind === "VXM" ? 0 : { MEM: 1, SXM: 2, MXM: 3 }[kind] * (hemisphere ? 1 : -1);
      const group = found.get(kind + side) || { name: kind + side, kind, order, members: [] };
      group.members.push([hemisphere || kind === "VXM" ? index : -index, queue]);
      found.set(kind + side, group);
    });
    const groups = [...found.values()].sort((a, b) => a.order - b.order);
    for (const group of groups) group.queues = group.members.sort((a, b) => a[0] - b[0]).map((member) => member[1]);
    return groups;
  }

  rowsByQueue(block) {
    const lists = this.program.chip.queues.map(() => []);
    for (let row = block.first; row < block.stop; row++) lists[this.program.rows.queue[row]].push(row);
    return lists;
  }

  /** Heights and places of all lanes for a canvas of this height. */
  layout(height) {
    this.top = this.lanes.bottom;
    const least = (group) => (group.kind === "MEM" ? 1.4 : 4), gaps = GROUP_GAP * this.groups.length;
    const wanted = this.groups.reduce((sum, group) => sum + least(group) * group.queues.length, 0);
    const fit = Math.max(1, Math.min(3, (height - this.top - gaps) / Math.max(1, wanted)));
    let y = this.top;
    for (const group of this.groups) {
      group.y = y + GROUP_GAP / 2;
      group.each = this.isTall ? (group.kind === "MEM" ? 10 : 13) : least(group) * fit;
      y += group.each * group.queues.length + GROUP_GAP;
    }
    this.bottom = y;
    this.scroll = Math.max(0, Math.min(this.scroll, this.bottom - height));
  }

  /** Top and height of a queue's line. */
  line(queue) {
    const group = this.groups.find((each) => each.queues.includes(queue));
    return { y: group.y + group.queues.indexOf(queue) * group.each - this.scroll, height: group.each };
  }

  makeDensity(isShown) {
    return new Density(this.program, this.clock, this.track, this.tracks.length, isShown);
  }

  /** Marks the rows for which isShown(row) holds; null marks none. */
  mark(isShown) {
    this.isMarked = isShown;
    this.marked = isShown ? this.makeDensity(isShown) : null;
  }

  // Drawing -----------------------------------------------------------------------------------------------------------

  x(cycle) {
    const { from, to } = this.app.view;
    return GUTTER + (cycle - from) * (this.width - GUTTER) / (to - from);
  }

  cycleAt(x) {
    const { from, to } = this.app.view;
    return from + (x - GUTTER) * (to - from) / Math.max(1, this.width - GUTTER);
  }

  draw() {
    const { context, width, height } = prepare(this.canvas);
    Object.assign(this, { width, height });
    this.layout(height);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.save();
    context.beginPath();
    context.rect(GUTTER, 0, width - GUTTER, height);
    context.clip();
    context.save();
    context.beginPath();
    context.rect(GUTTER, this.top, width - GUTTER, height - this.top);
    context.clip();
    const { from, to } = this.app.view;
    if (this.barsInView(from, to) <= MAX_BARS) this.drawBars(context, from, to);
    else this.drawDensity(context, from, to);
    this.drawSelection(context);
    context.restore();
    this.lanes.draw(context, from, to);
    this.drawCursor(context, height);
    context.restore();
    this.drawLabels(context, height);
  }

  barsInView(from, to) {
    let number = 0;
    this.clock.iterations(from, to, (index, base) => {
      const block = this.clock.blocks[index], start = this.program.rows.start;
      const low = lowerBound(start, from - base - this.clock.longest[index], block.first, block.stop);
      number += lowerBound(start, to - base, low, block.stop) - low;
    }, 1 + MAX_BARS);
    return number;
  }

  drawBars(context, from, to) {
    const { rows } = this.program, scale = (this.width - GUTTER) / (to - from);
    const batches = new Map();
    const put = (color, alpha, x, y, width, height) => {
      const key = `${color} ${alpha}`;
      if (!batches.has(key)) batches.set(key, []);
      batches.get(key).push(x, y, width, height);
    };
    const texts = [];
    const place = this.tracks.map((queue) => this.line(queue));
    this.clock.iterations(from, to, (index, base) => {
      const block = this.clock.blocks[index];
      const low = lowerBound(rows.start, from - base - this.clock.longest[index], block.first, block.stop);
      for (let row = low; row < block.stop && rows.start[row] + base <= to; row++) {
        const begin = this.clock.begin[row] + base, end = this.clock.end[row] + base;
        if (end < from) continue;
        const { y, height } = place[this.track[rows.queue[row]]];
        if (y > this.height || y + height < this.top) continue;
        const x = GUTTER + (begin - from) * scale, width = Math.max(1, (end - begin) * scale);
        const dim = this.isMarked && !this.isMarked(row) ? 0.18 : 1;
        const color = kindColor(rows.kind[row]), tall = Math.max(1, height - 1);
        const gaps = rows.count[row] > 1 && rows.interval[row] > rows.duration[row];
        put(color, gaps ? 0.35 * dim : dim, x, y, width, tall);
        if (gaps && rows.interval[row] * scale >= 3) {
          const first = Math.max(0, Math.floor((from - begin) / rows.interval[row]));
          for (let k = first; k < rows.count[row]; k++) {
            const at = x + k * rows.interval[row] * scale;
            if (at > this.width) break;
            put(color, dim, at, y, Math.max(1, rows.duration[row] * scale), tall);
          }
        }
        if (width > 40 && height >= 8.5) texts.push([row, x, y + height / 2, width, gaps || dim < 1 ? theme.colors.ink : textOn(rows.kind[row])]);
      }
    });
    for (const [key, boxes] of batches) {
      const [color, alpha] = key.split(" ");
      context.fillStyle = color;
      context.globalAlpha = Number(alpha);
      for (let i = 0; i < boxes.length; i += 4) context.fillRect(boxes[i], boxes[i + 1], boxes[i + 2], boxes[i + 3]);
    }
    context.globalAlpha = 1;
    context.font = "9px system-ui, sans-serif";
    for (const [row, x, y, width, color] of texts.slice(0, 400)) {
      const left = Math.max(x, GUTTER) + 3;
      context.fillStyle = color;
      context.fillText(fitted(this.program.text[row], x + width - left), left, y + 0.5);
    }
    context.font = "11px system-ui, sans-serif";
  }

  /** One pixel row per queue, stretched to the height of its line; the darker, the busier. */
  drawDensity(context, from, to) {
    const pixels = Math.max(1, Math.floor(this.width - GUTTER));
    const picture = new ImageData(pixels, Math.max(1, this.tracks.length));
    if (this.marked) {
      this.paint(picture, this.density.shares(from, to, pixels), 0.3);
      this.paint(picture, this.marked.shares(from, to, pixels), 1);
    } else {
      this.paint(picture, this.density.shares(from, to, pixels), 1);
    }
    this.image.width = picture.width;
    this.image.height = picture.height;
    this.image.getContext("2d").putImageData(picture, 0, 0);
    context.imageSmoothingEnabled = false;
    let line = 0;
    for (const group of this.groups) {
      const number = group.queues.length;
      context.drawImage(this.image, 0, line, pixels, number, GUTTER, group.y - this.scroll, pixels, number * group.each);
      line += number;
    }
  }

  paint(picture, shares, strength) {
    const { width: pixels, data } = picture;
    this.tracks.forEach((queue, line) => {
      const kind = this.program.chip.queues[queue][1];
      const colors = kind === "MEM" ? ["mem-read", "mem-write"] : [this.colorOf(queue)];
      colors.forEach((name, slot) => {
        const [red, green, blue] = theme.rgb[name], lane = (2 * line + slot) * pixels;
        for (let p = 0; p < pixels; p++) {
          const share = Math.min(1, shares[lane + p]);
          if (share <= 0.0005) continue;
          const alpha = strength * (0.25 + 0.75 * share), i = 4 * (line * pixels + p);
          const rest = (data[i + 3] / 255) * (1 - alpha), sum = alpha + rest;
          data[i] = (red * alpha + data[i] * rest) / sum;
          data[i + 1] = (green * alpha + data[i + 1] * rest) / sum;
          data[i + 2] = (blue * alpha + data[i + 2] * rest) / sum;
          data[i + 3] = 255 * sum;
        }
      });
    });
  }

  colorOf(queue) {
    const [, kind, , index] = this.program.chip.queues[queue];
    if (kind === "MXM") return index % 3 === 0 ? "mxm-load" : "mxm";
    return { VXM: "vxm", SXM: "sxm", MEM: "mem-read" }[kind];
  }

  drawCursor(context, height) {
    const x = this.x(this.app.view.cycle + 0.5);
    context.strokeStyle = theme.colors.mark;
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(x, 4);
    context.lineTo(x, height);
    context.stroke();
    context.fillStyle = theme.colors.mark;
    context.beginPath();
    context.moveTo(x - 5, 0);
    context.lineTo(x + 5, 0);
    context.lineTo(x, 7);
    context.fill();
  }

  /** A frame around the selected row, and lines to the rows that its values come from and go to. */
  drawSelection(context) {
    const { row, base, sources, targets } = this.app.view;
    if (row === null) return;
    const frame = (each, strong) => {
      const { y, height } = this.line(this.program.rows.queue[each]);
      const left = this.x(this.clock.begin[each] + base), right = this.x(this.clock.end[each] + base);
      context.lineWidth = strong ? 1.5 : 0.7;
      if (strong || height > 5) context.strokeRect(left - 1, y - 1.5, Math.max(3, right - left + 2), height + 2);
      return { left, right, middle: y + height / 2 };
    };
    context.strokeStyle = theme.colors.ink;
    const own = frame(row, true);
    const curve = (from, to) => {
      const bend = Math.max(12, Math.abs(to.left - from.left) / 2);
      context.beginPath();
      context.moveTo(from.left, from.middle);
      context.bezierCurveTo(from.left + bend, from.middle, to.left - bend, to.middle, to.left, to.middle);
      context.stroke();
    };
    for (const each of sources.slice(0, MAX_LINKS)) curve(frame(each, false), own);
    for (const each of targets.slice(0, MAX_LINKS)) curve(own, frame(each, false));
  }

  drawLabels(context, height) {
    context.fillStyle = theme.colors.dim;
    context.textAlign = "right";
    const name = (text, y) => context.fillText(text, GUTTER - 8, y);
    for (const [text, y] of this.lanes.labels()) name(text, y);
    context.save();
    context.beginPath();
    context.rect(0, this.top, GUTTER, height - this.top);
    context.clip();
    for (const group of this.groups) {
      const top = group.y - this.scroll, tall = group.each * group.queues.length;
      context.strokeStyle = theme.colors.line;
      context.beginPath();
      context.moveTo(0, top - GROUP_GAP / 2 + 0.5);
      context.lineTo(GUTTER, top - GROUP_GAP / 2 + 0.5);
      context.stroke();
      const detailed = group.each >= 9;
      context.textAlign = "left";
      context.fillStyle = theme.colors.ink;
      context.fillText(group.name, 8, this.isTall || tall < 24 ? top + 6 : top + tall / 2);
      context.textAlign = "right";
      context.fillStyle = theme.colors.dim;
      context.font = "9px system-ui, sans-serif";
      if (detailed) group.queues.forEach((queue, i) => name(this.shortName(queue), top + (i + 0.5) * group.each));
      else if (tall > 30) [0, group.queues.length - 1].forEach((i) => name(this.shortName(group.queues[i]), top + (i ? tall - 5 : 5)));
      context.font = "11px system-ui, sans-serif";
    }
    context.restore();
    context.textAlign = "left";
    if (this.bottom > height) { // a thumb that shows how far the queues are scrolled
      const room = height - this.top, share = room / (this.bottom - this.top);
      context.fillStyle = theme.colors.line;
      context.fillRect(this.width - 4, this.top + this.scroll * share, 3, room * share);
    }
  }

  shortName(queue) {
    const [, kind, hemisphere, index] = this.program.chip.queues[queue];
    if (kind === "MXM") return `${Math.floor(index / 3)} ${["weights", "act.", "result"][index % 3]}`;
    if (kind === "SXM") return sxmUnit(this.program.chip, index);
    return kind === "MEM" ? `${hemisphere ? "E" : "W"}${index}` : `ALU ${index}`;
  }

  // Hands -------------------------------------------------------------------------------------------------------------

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const step = event.deltaMode === 1 ? 30 : 1;
      if (event.offsetX < GUTTER) this.scrollBy(event.deltaY * step);
      else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.pan((event.deltaX || event.deltaY) * step);
      else this.app.zoom(2 ** (event.deltaY * step / 300), this.cycleAt(event.offsetX));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.grip = { x: event.offsetX, y: event.offsetY, moved: false };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.grip) return this.showTip(event);
      const dx = this.grip.x - event.offsetX, dy = this.grip.y - event.offsetY;
      if (!this.grip.moved && Math.abs(dx) + Math.abs(dy) < 4) return undefined;
      this.grip = { x: event.offsetX, y: event.offsetY, moved: true };
      this.app.hideTip();
      this.pan(dx);
      this.scrollBy(dy);
      return undefined;
    });
    canvas.addEventListener("pointerup", (event) => {
      const moved = this.grip && this.grip.moved;
      this.grip = null;
      if (!moved) this.click(event);
    });
    canvas.addEventListener("pointerleave", () => this.app.hideTip());
    canvas.addEventListener("dblclick", () => this.app.zoomToRow());
  }

  pan(pixels) {
    const { from, to } = this.app.view, cycles = pixels * (to - from) / Math.max(1, this.width - GUTTER);
    this.app.show(from + cycles, to + cycles);
  }

  /** Scrolls until a queue's line is in view. */
  reveal(queue) {
    if (!this.height) return;
    const { y, height } = this.line(queue);
    if (y < this.top || y + height > this.height) this.scrollBy(y - (this.top + this.height) / 2);
  }

  setTall(isTall) {
    this.isTall = isTall;
    this.app.invalidate("timeline");
  }

  scrollBy(pixels) {
    this.scroll = Math.max(0, Math.min(this.scroll + pixels, this.bottom - this.height));
    this.app.invalidate("timeline");
  }

  /** {row, base, iteration} at a point, the nearest one within three pixels. */
  hit(x, y) {
    const group = this.groups.find((each) => y + this.scroll >= each.y && y + this.scroll < each.y + each.each * each.queues.length);
    if (x < GUTTER || y < this.top || !group) return null;
    const queue = group.queues[Math.floor((y + this.scroll - group.y) / group.each)];
    const cycle = this.cycleAt(x), slack = this.cycleAt(x + 3) - cycle;
    let best = null, distance = Infinity;
    this.clock.iterations(cycle - slack, cycle + slack, (number, base, iteration) => {
      const list = this.byQueue[number][queue], start = this.program.rows.start;
      let low = 0, high = list.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (start[list[middle]] + base + this.clock.longest[number] < cycle - slack) low = middle + 1;
        else high = middle;
      }
      for (let i = low; i < list.length && start[list[i]] + base <= cycle + slack; i++) {
        const row = list[i], begin = this.clock.begin[row] + base, end = this.clock.end[row] + base;
        const far = Math.max(0, begin - cycle, cycle - end);
        if (far <= slack && far <= distance) {
          best = { row, base, iteration };
          distance = far;
        }
      }
    }, 50);
    return best;
  }

  click(event) {
    this.canvas.focus();
    const found = this.hit(event.offsetX, event.offsetY);
    const module = found ? null : this.lanes.moduleAt(event.offsetX, event.offsetY);
    if (found) this.app.select(found.row, found.iteration);
    else if (module) this.app.markModule(module[3]);
    else if (event.offsetX > GUTTER) this.app.goTo(Math.floor(this.cycleAt(event.offsetX)));
  }

  showTip(event) {
    const found = this.hit(event.offsetX, event.offsetY), module = found ? null : this.lanes.moduleAt(event.offsetX, event.offsetY);
    if (found) this.app.tip(event, this.app.describe(found.row, found.base));
    else if (module) this.app.tip(event, `${module[3]}\n${count(module[1] - module[0])} cycles of the binding chain`);
    else this.app.hideTip();
  }
}
