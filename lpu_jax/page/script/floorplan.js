"use strict";
// The chip at one cycle, as it lies: MXM, SXM and MEM of the west, the VXM, and the same mirrored in the east. Values ride
// on 32 streams eastward (upper half) and 32 westward; below are the units with what they do.

const MEM_OPCODES = new Set([3, 4, 5, 6]); // Read, Write, Gather, Scatter, numbered as in lpu_jax/runtime/isa.py
const OPCODE = { LW: 7, IW: 8, ABC: 9 };

/** The unit of an SXM queue. */
function sxmUnit(chip, index) {
  if (index === 0) return "permuter";
  return index <= chip.transposers ? `transp. ${index - 1}` : `distr. ${index - 1 - chip.transposers}`;
}

class FloorPlan {
  constructor(app, canvas) {
    Object.assign(this, { app, canvas, program: app.program, clock: app.clock, chip: app.program.chip });
    this.spots = []; // [left, top, right, bottom, text, row, iteration] of what can be pointed at
    this.planes = this.planeRows();
    this.span = this.chip.max_position + 1.5;
    canvas.addEventListener("pointermove", (event) => {
      const spot = this.spotAt(event.offsetX, event.offsetY);
      if (spot) this.app.tip(event, spot[4]);
      else this.app.hideTip();
    });
    canvas.addEventListener("pointerleave", () => this.app.hideTip());
    canvas.addEventListener("click", (event) => {
      const spot = this.spotAt(event.offsetX, event.offsetY);
      if (spot && spot[5] >= 0) this.app.select(spot[5], spot[6], true);
    });
  }

  spotAt(x, y) {
    for (let i = this.spots.length - 1; i >= 0; i--) {
      const [left, top, right, bottom] = this.spots[i];
      if (left <= x && x <= right && top <= y && y <= bottom) return this.spots[i];
    }
    return null;
  }

  // Planes ----------------------------------------------------------------------------------------------------------

  /** LW and IW rows of each plane and block, in order of issue: [hemisphere][plane][block]. A tile wider than a byte is
      loaded and installed on the first plane of a pair and fills both. */
  planeRows() {
    const { rows, chip } = this.program;
    const made = [0, 1].map(() => Array.from({ length: chip.planes }, () => this.clock.blocks.map(() => [])));
    const isWide = [0, 1].map(() => new Array(chip.planes).fill(false)); // the last tile that was loaded on a plane
    this.longestLoad = 0;
    this.clock.blocks.forEach((block, number) => {
      for (let row = block.first; row < block.stop; row++) {
        const opcode = rows.opcode[row];
        if (opcode !== OPCODE.LW && opcode !== OPCODE.IW) continue;
        const [, , hemisphere, index] = chip.queues[rows.queue[row]], plane = Math.floor(index / 3);
        if (opcode === OPCODE.LW) {
          isWide[hemisphere][plane] = rows.loop[row] < chip.load_streams;
          this.longestLoad = Math.max(this.longestLoad, rows.count[row] * rows.interval[row]);
        }
        const covered = isWide[hemisphere][plane] ? chip.planes : 1;
        for (let i = 0; i < covered; i++) made[hemisphere][(plane + i) % chip.planes][number].push(row);
      }
    });
    return made;
  }

  /** {loaded, installed, row}: rows of weights in the buffer and in the plane at a cycle, and the row that installed. */
  planeAt(hemisphere, plane, cycle) {
    const lists = this.planes[hemisphere][plane], rows = this.program.rows, installs = [], loads = [];
    let oldest = -Infinity; // loads that end before this cycle no longer matter
    for (const [number, base] of this.before(cycle)) {
      const list = lists[number];
      for (let i = list.length - 1; i >= 0; i--) {
        const row = list[i], at = base + rows.start[row];
        if (at > cycle) continue;
        if (at < oldest) return this.weights(cycle, installs, loads);
        if (rows.opcode[row] === OPCODE.LW) {
          loads.push([row, at]);
        } else {
          installs.push([row, at]);
          if (installs.length === 2) oldest = at - this.longestLoad;
        }
      }
    }
    return this.weights(cycle, installs, loads);
  }

  /** Loads after the last install are in the buffer, those between the last two in the plane. */
  weights(cycle, installs, loads) {
    const rows = this.program.rows, [last, earlier] = [0, 1].map((i) => (installs[i] ? installs[i][1] : -Infinity));
    const until = (row, at, moment) => Math.max(0, Math.min(rows.count[row], Math.floor((moment - at) / rows.interval[row]) + 1));
    const sum = (from, to) => loads.reduce((all, [row, at]) => all + rows.loop[row] * (until(row, at, to) - until(row, at, from)), 0);
    return {
      loaded: Math.min(this.chip.mxm_rows, sum(last, cycle)),
      installed: installs.length ? Math.min(this.chip.mxm_rows, sum(earlier, last)) : 0,
      row: installs.length ? installs[0][0] : -1,
    };
  }

  /** [block, base] of iterations that began at or before a cycle, the latest first; of a loop the last three. */
  * before(cycle) {
    for (let number = this.clock.blocks.length - 1; number >= 0; number--) {
      const block = this.clock.blocks[number];
      if (block.start > cycle) continue;
      const last = Math.min(block.iterations - 1, Math.floor((cycle - block.start) / Math.max(1, block.period)));
      for (let k = last; k >= Math.max(0, last - 2); k--) yield [number, block.start + k * block.period];
    }
  }

  // Drawing -----------------------------------------------------------------------------------------------------------

  x(position) {
    return 4 + (position + this.span) * (this.width - 8) / (2 * this.span);
  }

  draw() {
    const { context, width, height } = prepare(this.canvas);
    Object.assign(this, { width, height, context, spots: [] });
    const cycle = this.app.view.cycle;
    this.bandTop = 20;
    this.bandBottom = Math.max(90, height - 112);
    this.each = (this.bandBottom - this.bandTop) / (2 * this.chip.streams + 2);
    context.textBaseline = "middle";
    context.textAlign = "center";
    context.font = "11px system-ui, sans-serif";
    const work = this.workAt(cycle);
    this.drawGround();
    this.drawSlices(work);
    this.drawFlights(this.app.view.moment);
    this.drawAlus(work);
    [0, 1].forEach((hemisphere) => this.drawSide(hemisphere, work, cycle));
    context.textAlign = "left";
  }

  /** Rows that work in this cycle, by queue: [row, iteration]. */
  workAt(cycle) {
    const found = new Map();
    this.clock.rowsAt(cycle, (row, base, iteration) => {
      if (!this.clock.works(row, cycle - base)) return;
      const queue = this.program.rows.queue[row];
      if (!found.has(queue)) found.set(queue, []);
      found.get(queue).push([row, base, iteration]);
    });
    return found;
  }

  drawGround() {
    const { context, chip } = this, top = this.bandTop, tall = this.bandBottom - this.bandTop;
    const stripe = (low, high, text) => {
      const left = this.x(low), right = this.x(high);
      context.fillStyle = theme.colors.faint;
      context.fillRect(left, top, right - left, tall);
      context.fillStyle = theme.colors.dim;
      context.fillText(text, (left + right) / 2, top - 10);
    };
    stripe(-chip.vxm_edge + 0.6, chip.vxm_edge - 0.6, "VXM");
    for (const [side, sign] of [[0, -1], [1, 1]]) {
      const letter = side ? "east" : "west", outer = this.span - 0.3;
      stripe(Math.min(sign * (chip.vxm_edge - 0.4), chip.mem_edge[side] + sign * 0.5),
        Math.max(sign * (chip.vxm_edge - 0.4), chip.mem_edge[side] + sign * 0.5), `MEM ${letter}`);
      stripe(Math.min(chip.sxm[side] - 0.4, chip.sxm[side] + 0.4), chip.sxm[side] + 0.4, "SXM");
      stripe(Math.min(sign * (chip.max_position - 2.6), sign * outer), Math.max(sign * (chip.max_position - 2.6), sign * outer), "MXM");
    }
    context.strokeStyle = theme.colors.line;
    context.lineWidth = 0.5;
    context.beginPath();
    for (let stream = 0; stream < 2 * chip.streams; stream++) {
      const y = this.streamY(stream);
      context.moveTo(this.x(-chip.max_position), y);
      context.lineTo(this.x(chip.max_position), y);
    }
    context.stroke();
    context.fillStyle = theme.colors.dim;
    context.save();
    context.font = "14px system-ui, sans-serif";
    context.fillText("→", this.x(-this.span + 0.7), this.streamY(chip.streams / 2));
    context.fillText("←", this.x(this.span - 0.7), this.streamY(1.5 * chip.streams));
    context.restore();
  }

  /** Eastward streams in the upper half, westward ones in the lower, a gap between them. */
  streamY(stream) {
    return this.bandTop + (stream + (stream >= this.chip.streams ? 1.5 : 0.5)) * this.each;
  }

  drawSlices(work) {
    const { context, chip } = this, wide = (this.x(1) - this.x(0)) / chip.slices_per_column;
    for (let side = 0; side < 2; side++) {
      const sign = side ? 1 : -1;
      for (let slice = 0; slice < chip.slices; slice++) {
        const column = Math.floor(slice / chip.slices_per_column), part = slice % chip.slices_per_column;
        const middle = this.x(sign * (chip.vxm_edge + column)) + sign * (part - (chip.slices_per_column - 1) / 2) * wide;
        const queue = side * chip.slices + slice, left = middle - wide / 2 + 0.5;
        const doing = work.get(queue) || [];
        let text = `MEM_${side ? "E" : "W"}${slice}${chip.reserved[side].includes(slice) ? ", kept for the system" : ""}`;
        let row = -1, iteration = 0;
        context.fillStyle = theme.colors.panel;
        context.globalAlpha = 0.7;
        context.fillRect(left, this.bandTop, wide - 1, this.bandBottom - this.bandTop);
        context.globalAlpha = 0.55;
        doing.forEach(([each, base, trip], index) => {
          const tall = (this.bandBottom - this.bandTop) / doing.length;
          context.fillStyle = kindColor(this.program.rows.kind[each]);
          context.fillRect(left, this.bandTop + index * tall, wide - 1, tall);
          text += `\n${this.app.describe(each, base)}`;
          [row, iteration] = [each, trip];
        });
        context.globalAlpha = 1;
        this.spots.push([left, this.bandTop, left + wide, this.bandBottom, text, row, iteration]);
      }
    }
  }

  /** Every value on a stream, where it is at a moment (cycles with fractions); coloured by the unit it comes from. */
  drawFlights(moment) {
    const { context, program, chip } = this, { flights } = program;
    const hop = this.x(1) - this.x(0), tall = Math.max(1.5, this.each * 0.72), whole = Math.floor(moment);
    this.numValues = 0;
    this.clock.flightsAt(whole, (flight, base) => {
      const elapsed = moment - base, interval = flights.interval[flight], life = flights.life[flight];
      const since = elapsed - flights.first[flight], row = flights.row[flight];
      const last = Math.min(flights.repetitions[flight] - 1, Math.floor(since / interval));
      const eastward = flights.stream[flight] < chip.streams, sign = eastward ? 1 : -1;
      const chosen = row === this.app.view.row;
      context.fillStyle = chosen ? theme.colors.ink : kindColor(program.rows.kind[row]);
      for (let k = last; k >= 0; k--) {
        const age = since - k * interval;
        if (Math.floor(age) > life) break;
        const x = this.x(sign * (flights.along[flight] + Math.min(age, life)));
        const y = this.streamY(flights.stream[flight]) - tall / 2;
        const high = tall + (flights.width[flight] - 1) * this.each;
        this.numValues += flights.width[flight];
        context.fillRect(x - hop * 0.38, y, hop * 0.76, high);
        if (chosen || !this.app.playing) {
          const text = `${eastward ? "E" : "W"}${flights.stream[flight] % chip.streams}`
            + `${flights.width[flight] > 1 ? ` .. ${flights.stream[flight] % chip.streams + flights.width[flight] - 1}` : ""}`
            + `, ${Math.floor(age)} of ${life} cycles on the way\nfrom ${this.app.describe(row, base)}`;
          this.spots.push([x - hop / 2, y - 1, x + hop / 2, y + high + 1, text, row, this.iterationOf(row, base)]);
        }
      }
    });
  }

  iterationOf(row, base) {
    const block = this.clock.blocks[this.clock.blockOf(row)];
    return Math.round((base - block.start) / Math.max(1, block.period));
  }

  drawAlus(work) {
    const { context, chip, program } = this, columns = Math.ceil(chip.alus / 4), first = 2 * chip.slices;
    const left = this.x(-8.5), wide = (this.x(8.5) - left) / columns, top = this.bandBottom + 12;
    const tall = (this.height - top - 4) / 4;
    for (let alu = 0; alu < chip.alus; alu++) {
      const x = left + (alu % columns) * wide, y = top + Math.floor(alu / columns) * tall;
      const doing = (work.get(first + alu) || [])[0];
      this.unitBox(x + 1, y + 1, wide - 2, tall - 2, doing ? program.functions[program.rows.place[doing[0]]] : `ALU ${alu}`, doing, `VXM${alu}`);
    }
  }

  /** A unit, filled while it works. */
  unitBox(x, y, wide, tall, text, doing, name) {
    const { context } = this;
    context.fillStyle = doing ? kindColor(this.program.rows.kind[doing[0]]) : theme.colors.faint;
    context.fillRect(x, y, wide, tall);
    context.font = `${Math.min(11, Math.max(8, tall - 6))}px system-ui, sans-serif`;
    context.fillStyle = doing ? textOn(this.program.rows.kind[doing[0]]) : theme.colors.dim;
    context.fillText(fitted(text, wide), x + wide / 2, y + tall / 2 + 0.5);
    context.font = "11px system-ui, sans-serif";
    this.spots.push([x, y, x + wide, y + tall, doing ? `${name}\n${this.app.describe(doing[0], doing[1])}` : `${name}, idle`,
      doing ? doing[0] : -1, doing ? doing[2] : 0]);
  }

  /** SXM units and planes of a hemisphere, from the middle outwards. */
  drawSide(hemisphere, work, cycle) {
    const { chip } = this, sign = hemisphere ? 1 : -1, top = this.bandBottom + 12, tall = this.height - top - 4;
    const first = 2 * chip.slices + chip.alus + chip.queues.filter((queue) => queue[1] === "MXM").length;
    const perSide = chip.queues.filter((queue) => queue[1] === "SXM").length / 2;
    const number = 1 + chip.transposers + chip.distributors, each = tall / number;
    const near = this.x(sign * 9.2), far = this.x(sign * 13.2);
    for (let unit = 0; unit < number; unit++) {
      const doing = (work.get(first + hemisphere * perSide + unit) || [])[0], name = sxmUnit(chip, unit);
      this.unitBox(Math.min(near, far), top + unit * each + 1, Math.abs(far - near), each - 2, name, doing, `SXM ${name}`);
    }
    for (let plane = 0; plane < chip.planes; plane++) {
      const from = 13.8 + plane * (this.span - 14) / chip.planes, to = 13.6 + (plane + 1) * (this.span - 14) / chip.planes;
      const edges = [this.x(sign * from), this.x(sign * to)];
      this.drawPlane(hemisphere, plane, Math.min(...edges), top + 1, Math.abs(edges[1] - edges[0]), tall - 2, work, cycle);
    }
  }

  /** A plane: the bar at the left is its buffer as it fills, the square the installed weights; framed while it multiplies. */
  drawPlane(hemisphere, plane, x, y, wide, tall, work, cycle) {
    const { context, chip, program } = this, state = this.planeAt(hemisphere, plane, cycle);
    const first = 2 * chip.slices + chip.alus + hemisphere * chip.queues.filter((queue) => queue[1] === "MXM").length / 2;
    const doing = (part, covers) => [...Array(chip.planes).keys()].flatMap((other) => (work.get(first + 3 * other + part) || [])
      .filter(([row]) => other === plane || (covers && other < plane && other + program.rows.ports[row] > plane)));
    const loads = doing(0, true)[0], multiplies = doing(1, true)[0], reads = doing(2, false)[0];
    const bar = Math.max(5, wide * 0.1), square = wide - bar - 3;
    context.fillStyle = theme.colors.faint;
    context.fillRect(x, y, bar, tall);
    context.fillRect(x + bar + 3, y, square, tall);
    context.fillStyle = theme.colors["mxm-load"];
    const full = tall * state.loaded / chip.mxm_rows;
    context.fillRect(x, y + tall - full, bar, full);
    context.globalAlpha = 0.35;
    const held = tall * state.installed / chip.mxm_rows;
    context.fillRect(x + bar + 3, y + tall - held, square, held);
    context.globalAlpha = 1;
    if (multiplies) {
      context.fillStyle = theme.colors.mxm;
      context.globalAlpha = 0.6;
      context.fillRect(x + bar + 3, y + tall - held, square, held);
      context.globalAlpha = 1;
    }
    context.strokeStyle = multiplies || reads ? theme.colors.mxm : theme.colors.line;
    context.lineWidth = multiplies ? 2 : 1;
    context.strokeRect(x + bar + 3.5, y + 0.5, square - 1, tall - 1);
    const name = state.row >= 0 ? this.app.moduleOf(state.row) : "";
    const says = [`plane ${plane}`, name.split("/").slice(-1)[0], multiplies ? "multiplies" : loads ? "loads" : reads ? "sums out" : ""];
    context.fillStyle = theme.colors.ink;
    context.font = "10px system-ui, sans-serif";
    says.forEach((text, i) => context.fillText(fitted(text, square + 12), x + bar + 3 + square / 2, y + 12 + 14 * i));
    context.font = "11px system-ui, sans-serif";
    const main = multiplies || loads || reads;
    const text = [
      `MXM ${hemisphere ? "east" : "west"}, plane ${plane}`,
      `installed: ${state.installed} of ${chip.mxm_rows} rows${name ? ` for ${name}` : ""}`,
      `in the buffer: ${state.loaded} rows`,
      ...[loads, multiplies, reads].filter(Boolean).map(([row, base]) => this.app.describe(row, base)),
    ].join("\n");
    this.spots.push([x, y, x + wide, y + tall, text, main ? main[0] : -1, main ? main[2] : 0]);
  }
}
