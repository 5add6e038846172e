"use strict";
// How busy each queue is, for stretches of time in which single instructions are too many or too thin to draw.

const DENSITY_BINS = 8192;

/** Sums of busy cycles per lane; a queue has two lanes, the second one holds MEM writes. */
class Density {
  /** track[queue] is the number of a queue's line, -1 for none; only rows with isShown(row) count. */
  constructor(program, clock, track, numTracks, isShown) {
    this.clock = clock;
    this.lanes = 2 * numTracks;
    const total = clock.blocks.reduce((sum, block) => sum + block.length, 0);
    this.blocks = clock.blocks.map((block) => {
      const bins = Math.min(Math.max(1, block.length), Math.max(64, Math.ceil(DENSITY_BINS * block.length / Math.max(1, total))));
      const width = Math.max(1, block.length) / bins;
      const sums = new Float32Array(this.lanes * (bins + 1));
      for (let row = block.first; row < block.stop; row++) {
        const line = track[program.rows.queue[row]];
        if (line < 0 || program.rows.kind[row] < 0 || !isShown(row)) continue;
        const lane = 2 * line + (program.rows.kind[row] === 1 ? 1 : 0);
        this.add(sums, lane * (bins + 1), width, clock.begin[row], clock.end[row],
          program.rows.count[row] * program.rows.duration[row]);
      }
      for (let lane = 0; lane < this.lanes; lane++) {
        for (let i = lane * (bins + 1) + 1; i < (lane + 1) * (bins + 1); i++) sums[i] += sums[i - 1];
      }
      return { bins, width, sums };
    });
  }

  /** Spreads `work` cycles over begin .. end; bin i is kept at place i + 1, so that sums start with 0. */
  add(sums, first, width, begin, end, work) {
    const rate = work / Math.max(1, end - begin);
    for (let bin = Math.floor(begin / width); bin * width < end; bin++) {
      const share = Math.min(end, (bin + 1) * width) - Math.max(begin, bin * width);
      sums[first + bin + 1] += share * rate;
    }
  }

  /** Share of busy cycles, [lanes][pixels], of `pixels` equal parts of from .. to. */
  shares(from, to, pixels) {
    const found = new Float32Array(this.lanes * pixels);
    const step = (to - from) / pixels;
    const bin = new Int32Array(pixels + 1), part = new Float32Array(pixels + 1), trips = new Int32Array(pixels + 1);
    this.clock.blocks.forEach((block, number) => {
      const { bins, width, sums } = this.blocks[number];
      const period = Math.max(1, block.period);
      const end = block.start + (block.iterations - 1) * period + block.length;
      const first = Math.max(0, Math.floor((block.start - from) / step)), last = Math.min(pixels, Math.ceil((end - from) / step));
      if (first >= last) return;
      for (let p = first; p <= last; p++) {
        const elapsed = Math.max(0, from + p * step - block.start);
        trips[p] = Math.min(block.iterations - 1, Math.floor(elapsed / period));
        const place = Math.min(bins, (elapsed - trips[p] * period) / width);
        bin[p] = Math.min(bins - 1, Math.floor(place));
        part[p] = place - bin[p];
      }
      for (let lane = 0; lane < this.lanes; lane++) {
        const zero = lane * (bins + 1), all = sums[zero + bins];
        if (all === 0) continue;
        let before = 0;
        for (let p = first; p <= last; p++) {
          const i = zero + bin[p];
          const sum = trips[p] * all + sums[i] + part[p] * (sums[i + 1] - sums[i]);
          if (p > first) found[lane * pixels + p - 1] += (sum - before) / step;
          before = sum;
        }
      }
    });
    return found;
  }
}
