"use strict";
// What happens when: blocks and their iterations, and which rows or flights are under way at a cycle.

/** Items by buckets of time, so that those under way at a cycle are found without looking at all of them. */
class IntervalIndex {
  /** Items first .. stop - 1 last from begin[i] up to before end[i]. */
  constructor(begin, end, first, stop) {
    let span = 0, last = 0;
    for (let i = first; i < stop; i++) {
      span += end[i] - begin[i];
      last = Math.max(last, end[i]);
    }
    this.begin = begin;
    this.end = end;
    this.size = Math.max(16, Math.ceil(span / Math.max(1, stop - first)));
    const number = Math.floor(last / this.size) + 1;
    this.offsets = new Int32Array(number + 1);
    const each = (action) => {
      for (let i = first; i < stop; i++) {
        const until = Math.floor(Math.max(begin[i], end[i] - 1) / this.size);
        for (let bucket = Math.max(0, Math.floor(begin[i] / this.size)); bucket <= until; bucket++) action(bucket, i);
      }
    };
    each((bucket) => this.offsets[bucket + 1]++);
    for (let b = 0; b < number; b++) this.offsets[b + 1] += this.offsets[b];
    this.items = new Int32Array(this.offsets[number]);
    const next = this.offsets.slice();
    each((bucket, i) => { this.items[next[bucket]++] = i; });
  }

  /** Calls action(item) for every item with begin <= cycle < end. */
  at(cycle, action) {
    const bucket = Math.floor(cycle / this.size);
    if (bucket < 0 || bucket + 1 >= this.offsets.length) return;
    for (let k = this.offsets[bucket]; k < this.offsets[bucket + 1]; k++) {
      const i = this.items[k];
      if (this.begin[i] <= cycle && cycle < this.end[i]) action(i);
    }
  }
}

/** The first index in [low, high) at which values[index] >= wanted; values are in order. */
function lowerBound(values, wanted, low, high) {
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Time in a program: begin and end of rows and flights within an iteration, and iterations within the program. */
class Clock {
  constructor(program) {
    this.program = program;
    this.blocks = program.blocks;
    this.cycles = program.report.cycles;
    const rows = program.rows, flights = program.flights;
    const number = program.text.length;
    this.begin = new Int32Array(number);
    this.end = new Int32Array(number);
    for (let row = 0; row < number; row++) {
      this.begin[row] = rows.start[row] + rows.offset[row];
      this.end[row] = this.begin[row] + (rows.count[row] - 1) * rows.interval[row] + rows.duration[row];
    }
    const flying = (flights.row || []).length;
    this.takeoff = flights.first;
    this.landing = new Int32Array(flying);
    for (let i = 0; i < flying; i++) {
      this.landing[i] = flights.first[i] + (flights.repetitions[i] - 1) * flights.interval[i] + flights.life[i] + 1;
    }
    this.longest = this.blocks.map((block) => this.longestRow(block));
    this.rowIndex = this.blocks.map((block) => new IntervalIndex(this.begin, this.end, block.first, block.stop));
    this.flightIndex = this.blocks.map((block, number) => {
      const first = flying ? lowerBound(flights.block, number, 0, flying) : 0;
      const stop = flying ? lowerBound(flights.block, number + 1, first, flying) : 0;
      return new IntervalIndex(this.takeoff, this.landing, first, stop);
    });
  }

  longestRow(block) {
    let longest = 0;
    for (let row = block.first; row < block.stop; row++) longest = Math.max(longest, this.end[row] - this.program.rows.start[row]);
    return longest;
  }

  /** The block of a row. */
  blockOf(row) {
    return this.blocks.findIndex((block) => block.first <= row && row < block.stop);
  }

  /** Calls action(number, base, iteration) for all iterations that overlap from .. to, at most `limit` per block. */
  iterations(from, to, action, limit = Infinity) {
    this.blocks.forEach((block, number) => {
      if (block.first === block.stop) return;
      const period = Math.max(1, block.period);
      const first = Math.max(0, Math.floor((from - block.start - block.length) / period));
      const last = Math.min(block.iterations - 1, Math.floor((to - block.start) / period));
      for (let k = first, done = 0; k <= last && done < limit; k++, done++) {
        const base = block.start + k * block.period;
        if (base + block.length > from && base <= to) action(number, base, k);
      }
    });
  }

  /** Calls action(row, base, iteration) for every row that works at a cycle; its repetitions may have gaps. */
  rowsAt(cycle, action) {
    this.iterations(cycle, cycle, (number, base, iteration) => {
      this.rowIndex[number].at(cycle - base, (row) => action(row, base, iteration));
    });
  }

  /** Calls action(flight, base) for every flight under way at a cycle. */
  flightsAt(cycle, action) {
    this.iterations(cycle, cycle, (number, base) => {
      this.flightIndex[number].at(cycle - base, (flight) => action(flight, base));
    });
  }

  /** Whether a repetition of a row works in exactly this cycle, `elapsed` cycles after the start of its iteration. */
  works(row, elapsed) {
    const since = elapsed - this.begin[row], interval = this.program.rows.interval[row];
    const repetition = Math.min(Math.floor(since / interval), this.program.rows.count[row] - 1);
    return since >= 0 && since - repetition * interval < this.program.rows.duration[row];
  }

  /** {block, iteration, elapsed}: where in the program a cycle lies; the last block that has begun. */
  place(cycle) {
    let number = 0;
    this.blocks.forEach((block, i) => { if (block.start <= cycle) number = i; });
    const block = this.blocks[number];
    if (block === undefined) return { block: 0, iteration: 0, elapsed: cycle };
    const iteration = Math.max(0, Math.min(block.iterations - 1, Math.floor((cycle - block.start) / Math.max(1, block.period))));
    return { block: number, iteration, elapsed: cycle - block.start - iteration * block.period };
  }
}
