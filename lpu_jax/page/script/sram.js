"use strict";
// SRAM as it lies: slices from west to east, addresses upwards, coloured by tensor; what is read and written in this cycle.

class SramMap {
  constructor(app, canvas, legend, use) {
    Object.assign(this, { app, canvas, legend, use, program: app.program, chip: app.program.chip });
    this.slicesFrom = this.starts();
    this.colors = this.chooseColors();
    this.when = "cycle";
    this.paintedFor = "";
    this.image = document.createElement("canvas");
    for (const input of document.querySelectorAll("input[name=sram-when]")) {
      input.addEventListener("change", () => {
        this.when = input.value;
        this.app.invalidate("sram");
      });
    }
    canvas.addEventListener("pointermove", (event) => this.showTip(event));
    canvas.addEventListener("pointerleave", () => this.app.hideTip());
    this.fillLegend();
  }

  /** Place of each tensor's first slice in the column of slices. */
  starts() {
    const { slices } = this.program.tensors, starts = new Int32Array(slices.length + 1);
    for (let i = 0; i < slices.length; i++) starts[i + 1] = starts[i] + slices[i];
    return starts;
  }

  bytes(tensor) {
    return this.program.tensors.slices[tensor] * this.program.tensors.addresses[tensor] * this.chip.num_lanes;
  }

  /** A colour for each of the largest names. */
  chooseColors() {
    const sizes = new Map();
    for (let i = 0; i < this.program.tensors.name.length; i++) {
      const name = this.program.tensors.name[i];
      sizes.set(name, (sizes.get(name) || 0) + this.bytes(i));
    }
    this.sizes = sizes;
    this.order = [...sizes.keys()].sort((a, b) => sizes.get(b) - sizes.get(a) || a - b);
    return new Map(this.order.slice(0, SRAM_COLORS.length).map((name, i) => [name, SRAM_COLORS[i]]));
  }

  color(name) {
    return theme.colors[this.colors.get(name) || "sram-rest"];
  }

  fillLegend() {
    this.legend.replaceChildren();
    for (const name of this.order.slice(0, SRAM_COLORS.length)) {
      const swatch = element("i");
      swatch.style.background = `var(--${this.colors.get(name)})`;
      this.legend.append(element("span", "", swatch, `${this.program.tensor_names[name]} ${mebibytes(this.sizes.get(name))}`));
    }
    if (this.order.length > SRAM_COLORS.length) {
      const swatch = element("i");
      swatch.style.background = "var(--sram-rest)";
      this.legend.append(element("span", "", swatch, `${this.order.length - SRAM_COLORS.length} smaller ones`));
    }
  }

  /** Tensors to be shown at a cycle. */
  shown(cycle) {
    const { first, end } = this.program.tensors, found = [];
    for (let i = 0; i < first.length; i++) if (this.when === "all" || (first[i] <= cycle && cycle < end[i])) found.push(i);
    return found;
  }

  place(hemisphere, slice) {
    return hemisphere ? this.chip.slices + slice : this.chip.slices - 1 - slice;
  }

  frame(width, height) {
    return { left: 34, top: 6, wide: width - 40, tall: height - 28 };
  }

  draw() {
    const { context, width, height } = prepare(this.canvas), { left, top, wide, tall } = this.frame(width, height);
    Object.assign(this, { width, height });
    const tensors = this.shown(this.app.view.cycle), each = wide / (2 * this.chip.slices);
    let live = 0;
    for (const tensor of tensors) live += this.bytes(tensor);
    this.use.textContent = this.when === "all" ? "the later above the earlier"
      : `${mebibytes(live)} of ${mebibytes(this.program.report.sram_capacity_bytes)} in use`;
    context.fillStyle = theme.colors.faint;
    context.fillRect(left, top, wide, tall);
    const { tensors: columns } = this.program, y = (address) => top + tall * (1 - address / this.chip.addresses);
    for (const tensor of tensors) {
      context.fillStyle = this.color(columns.name[tensor]);
      const high = Math.max(0.6, tall * columns.addresses[tensor] / this.chip.addresses);
      for (let i = this.slicesFrom[tensor]; i < this.slicesFrom[tensor + 1]; i++) {
        const x = left + this.place(columns.hemisphere[tensor], columns.slice[i]) * each;
        context.fillRect(x, y(columns.base[tensor] + columns.addresses[tensor]), Math.max(0.8, each - 0.4), high);
      }
    }
    this.drawFrame(context, left, top, wide, tall, each);
    this.drawAccesses(context, left, each, y);
  }

  drawFrame(context, left, top, wide, tall, each) {
    context.strokeStyle = theme.colors.line;
    context.fillStyle = theme.colors.dim;
    context.lineWidth = 1;
    context.font = "10px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.beginPath();
    for (let bank = 1; bank < this.chip.banks; bank++) {
      const y = top + tall * (1 - bank / this.chip.banks);
      context.moveTo(left, y);
      context.lineTo(left + wide, y);
    }
    context.stroke();
    context.strokeStyle = theme.colors.ink;
    context.beginPath();
    context.moveTo(left + wide / 2, top);
    context.lineTo(left + wide / 2, top + tall);
    context.stroke();
    const step = Math.max(1, Math.floor(this.chip.slices / 4));
    for (let side = 0; side < 2; side++) {
      for (let slice = side ? step : 0; slice < this.chip.slices; slice += step) { // E0 has no room beside W0
        context.fillText(`${side ? "E" : "W"}${slice}`, left + (this.place(side, slice) + 0.5) * each, top + tall + 10);
      }
      for (const slice of this.chip.reserved[side]) { // kept for the system: crossed out
        const x = left + this.place(side, slice) * each;
        context.globalAlpha = 0.25;
        context.fillStyle = theme.colors.dim;
        context.fillRect(x, top, Math.max(0.8, each - 0.4), tall);
        context.globalAlpha = 1;
        context.fillStyle = theme.colors.dim;
      }
    }
    context.textAlign = "right";
    for (let bank = 0; bank <= this.chip.banks; bank++) {
      const address = bank * this.chip.addresses / this.chip.banks;
      context.fillText(count(address), left - 3, Math.max(top + 5, top + tall * (1 - bank / this.chip.banks)));
    }
    context.textAlign = "left";
  }

  /** A tick at each address that is read or written in this cycle. */
  drawAccesses(context, left, each, y) {
    const { rows } = this.program, cycle = this.app.view.cycle;
    this.app.clock.rowsAt(cycle, (row, base, iteration) => {
      if (!MEM_OPCODES.has(rows.opcode[row]) || !this.app.clock.works(row, cycle - base)) return;
      const [, , hemisphere, slice] = this.chip.queues[rows.queue[row]];
      const repetition = Math.floor((cycle - base - rows.start[row]) / rows.interval[row]);
      const address = rows.place[row] + repetition * rows.step[row] + iteration * rows.loop[row];
      const x = left + this.place(hemisphere, slice) * each;
      context.fillStyle = theme.colors.panel;
      context.fillRect(x - 3, y(address + 0.5) - 3, each + 5, 6);
      context.fillStyle = kindColor(rows.kind[row]);
      context.fillRect(x - 2, y(address + 0.5) - 2, each + 3, 4);
    });
  }

  showTip(event) {
    const { left, top, wide, tall } = this.frame(this.width, this.height);
    const place = Math.floor((event.offsetX - left) / wide * 2 * this.chip.slices);
    const address = Math.floor((1 - (event.offsetY - top) / tall) * this.chip.addresses);
    if (place < 0 || place >= 2 * this.chip.slices || address < 0 || address >= this.chip.addresses) return this.app.hideTip();
    const side = place >= this.chip.slices ? 1 : 0, slice = side ? place - this.chip.slices : this.chip.slices - 1 - place;
    const { tensors } = this.program;
    const slack = Math.ceil(this.chip.addresses / tall); // a pixel covers so many addresses
    const found = this.shown(this.app.view.cycle).filter((i) => tensors.hemisphere[i] === side
      && tensors.base[i] - slack <= address && address < tensors.base[i] + tensors.addresses[i] + slack
      && tensors.slice.subarray(this.slicesFrom[i], this.slicesFrom[i + 1]).includes(slice));
    const lines = found.slice(-4).map((i) => `${this.program.tensor_names[tensors.name[i]]} (${this.program.formats[tensors.format[i]]}), `
      + `${tensors.slices[i]} slices, addresses ${count(tensors.base[i])} .. ${count(tensors.base[i] + tensors.addresses[i] - 1)}, `
      + (tensors.resident[i] ? "resident" : `cycles ${count(tensors.first[i])} .. ${count(tensors.end[i] - 1)}`));
    return this.app.tip(event, [`MEM_${side ? "E" : "W"}${slice}, address ${count(address)}`, ...lines].join("\n"));
  }
}

function mebibytes(bytes) {
  const size = bytes / 1048576;
  return size >= 0.1 ? `${size.toFixed(1)} MiB` : `${count(Math.ceil(bytes / 1024))} KiB`;
}
