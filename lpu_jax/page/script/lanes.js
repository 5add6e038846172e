"use strict";
// The lanes above the queues: the axis, the modules that cycles belong to, streams in use and SRAM in use.

const GUTTER = 122, AXIS = 20, MODULE_LANE = 15, CURVE_LANE = 15, MODULE_LEVELS = 3;

class Lanes {
  constructor(timeline) {
    Object.assign(this, { timeline, program: timeline.program, clock: timeline.clock });
    this.curves = this.program.streams ? 4 : 0;
    this.bottom = this.curveTop(this.curves + 1) + 2;
    this.spans = this.moduleSpans();
    this.sram = this.sramSteps();
  }

  /** [text, y] of the names of all lanes. */
  labels() {
    const names = ["streams → west", "→ east", "← west", "← east"].slice(0, this.curves);
    return [["module", AXIS + MODULE_LANE / 2], ...[...names, "SRAM"].map((text, i) => [text, this.curveTop(i) + CURVE_LANE / 2])];
  }

  /** Per block and level, stretches [start, stop, text, path] of the binding chain that belong to one module. */
  moduleSpans() {
    const spans = this.clock.blocks.map(() => Array.from({ length: MODULE_LEVELS }, () => []));
    for (const [block, start, stop, name] of this.program.chain) {
      const path = name.split("/");
      for (let level = 0; level < Math.min(path.length, MODULE_LEVELS); level++) {
        const list = spans[block][level], key = path.slice(0, level + 1).join("/");
        const last = list[list.length - 1];
        if (last && last[1] === start && last[3] === key) last[1] = stop;
        else list.push([start, stop, path[level], key]);
      }
    }
    return spans;
  }

  /** Bytes of SRAM in use from each of these cycles on. */
  sramSteps() {
    const { first, end, slices, addresses } = this.program.tensors;
    const change = new Map();
    const put = (cycle, bytes) => change.set(cycle, (change.get(cycle) || 0) + bytes);
    for (let i = 0; i < first.length; i++) {
      const bytes = slices[i] * addresses[i] * this.program.chip.num_lanes;
      put(first[i], bytes);
      put(end[i], -bytes);
    }
    const cycles = [...change.keys()].sort((a, b) => a - b);
    let level = 0;
    return { cycles, bytes: cycles.map((cycle) => (level += change.get(cycle))) };
  }

  // Drawing -----------------------------------------------------------------------------------------------------------

  get width() {
    return this.timeline.width;
  }

  x(cycle) {
    return this.timeline.x(cycle);
  }

  draw(context, from, to) {
    this.drawModules(context, from, to);
    this.drawCurves(context, from, to);
    this.drawAxis(context, from, to);
  }

  drawModules(context, from, to) {
    const scale = (this.width - GUTTER) / (to - from);
    this.clock.blocks.forEach((block, number) => {
      const end = block.start + block.iterations * block.period;
      if (end < from || block.start > to) return;
      if (block.iterations > 1 && block.period * scale < 34) {
        const names = this.spans[number][0].map((span) => span[2]).filter((text, i, all) => text[0] !== "(" && all.indexOf(text) === i);
        this.moduleBox(context, this.x(block.start), this.x(end), 0, `${count(block.iterations)} x ${names.join(", ")}`, number);
        return;
      }
      this.clock.iterations(from, to, (index, base) => {
        if (index !== number) return;
        this.spans[number].forEach((list, level) => {
          let drawn = -1, box = 0;
          for (const [start, stop, text] of list) {
            const left = this.x(base + start), right = this.x(base + Math.min(stop, block.cycles));
            box++;
            if (right < GUTTER || left > this.width || right - drawn < 0.6) continue;
            this.moduleBox(context, Math.max(left, drawn), right, level, text, box);
            drawn = right;
          }
        });
      });
    });
  }

  moduleBox(context, left, right, level, text, parity) {
    const y = AXIS + level * MODULE_LANE, width = right - left;
    context.fillStyle = theme.colors[parity % 2 ? "module-a" : "module-b"];
    context.fillRect(left, y, Math.max(0.5, width - (width > 3 ? 1 : 0)), MODULE_LANE - 1);
    const start = Math.max(left, GUTTER);
    if (right - start > 26) {
      context.fillStyle = theme.colors.ink;
      context.fillText(fitted(text, right - start - 4), start + 3, y + MODULE_LANE / 2);
    }
  }

  curveTop(index) {
    return AXIS + MODULE_LEVELS * MODULE_LANE + 4 + index * CURVE_LANE;
  }

  /** Streams in use (the most of a pixel) and SRAM in use; full height is the chip's limit. */
  drawCurves(context, from, to) {
    const pixels = Math.max(1, Math.floor(this.width - GUTTER)), step = (to - from) / pixels, room = CURVE_LANE - 3;
    context.fillStyle = theme.colors.other;
    for (let curve = 0; curve < this.curves; curve++) {
      const values = this.streamCurve(curve, from, step, pixels), bottom = this.curveTop(curve) + room + 1;
      for (let p = 0; p < pixels; p++) {
        if (!values[p]) continue;
        const high = Math.max(1, room * values[p] / this.program.chip.streams);
        context.fillRect(GUTTER + p, bottom - high, 1, high);
      }
    }
    const bottom = this.curveTop(this.curves) + room + 1, capacity = this.program.report.sram_capacity_bytes;
    const { cycles, bytes } = this.sram;
    for (let i = Math.max(0, lowerBound(cycles, from, 0, cycles.length) - 1); i < cycles.length && cycles[i] <= to; i++) {
      const left = Math.max(GUTTER, this.x(cycles[i])), right = i + 1 < cycles.length ? this.x(cycles[i + 1]) : this.width;
      const high = room * bytes[i] / capacity;
      context.fillRect(left, bottom - high, right - left, high);
    }
  }

  /** The most streams in use in each pixel; `streams` holds one iteration of each block after the other. */
  streamCurve(curve, from, step, pixels) {
    const found = new Float32Array(pixels), total = this.clock.blocks.reduce((sum, block) => sum + block.length, 0);
    let first = curve * total;
    for (const block of this.clock.blocks) {
      const period = Math.max(1, block.period), end = block.start + block.iterations * period;
      const low = Math.max(0, Math.floor((block.start - from) / step)), high = Math.min(pixels, Math.ceil((end - from) / step));
      for (let p = low; p < high; p++) {
        const begin = Math.max(0, from + p * step - block.start), stop = Math.min(end - block.start, begin + Math.max(1, step));
        const stride = Math.max(1, Math.floor((stop - begin) / 24));
        for (let c = Math.floor(begin); c < stop; c += stride) {
          found[p] = Math.max(found[p], this.program.streams[first + (c % period)]);
        }
      }
      first += block.length;
    }
    return found;
  }

  drawAxis(context, from, to) {
    context.fillStyle = theme.colors.panel;
    context.fillRect(GUTTER, 0, this.width - GUTTER, AXIS);
    context.fillStyle = theme.colors.dim;
    context.strokeStyle = theme.colors.line;
    context.lineWidth = 1;
    const rough = (to - from) * 90 / Math.max(1, this.width - GUTTER);
    const power = 10 ** Math.floor(Math.log10(Math.max(1, rough)));
    const step = Math.max(1, [1, 2, 5, 10].find((each) => each * power >= rough) * power);
    context.beginPath();
    for (let cycle = Math.ceil(from / step) * step; cycle <= to; cycle += step) {
      const x = Math.round(this.x(cycle)) + 0.5;
      context.moveTo(x, AXIS - 5);
      context.lineTo(x, AXIS);
      context.fillText(count(cycle), x + 3, AXIS / 2 - 1);
    }
    context.stroke();
  }

  /** The module whose stretch is at a point of the upper lanes. */
  moduleAt(x, y) {
    const level = Math.floor((y - AXIS) / MODULE_LANE);
    if (x < GUTTER || level < 0 || level >= MODULE_LEVELS) return null;
    const { block, elapsed } = this.clock.place(this.timeline.cycleAt(x));
    return (this.spans[block] ? this.spans[block][level].find(([start, stop]) => start <= elapsed && elapsed < stop) : null) || null;
  }
}
