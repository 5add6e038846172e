"use strict";
// The whole program in one strip above the timeline: a click moves the part in view, dragging chooses another one.

class Overview {
  constructor(app, canvas, timeline) {
    Object.assign(this, { app, canvas, timeline, clock: app.clock });
    this.listen();
  }

  /** How busy each group of queues is, as a picture of its own that only changes with the size and the scheme. */
  strip(width, height) {
    const ratio = window.devicePixelRatio || 1, key = [width, height, ratio, theme.colors.panel].join(" ");
    if (this.stripKey === key) return this.image;
    this.stripKey = key;
    this.image = document.createElement("canvas");
    Object.assign(this.image, { width: Math.max(1, width * ratio), height: Math.max(1, height * ratio) });
    const context = this.image.getContext("2d"), { groups, density } = this.timeline;
    context.scale(ratio, ratio);
    const pixels = Math.max(1, Math.floor(width - GUTTER)), each = (height - 4) / Math.max(1, groups.length);
    const shares = density.shares(0, this.clock.cycles, pixels);
    let line = 0;
    groups.forEach((group, index) => {
      for (const slot of [0, 1]) {
        const color = slot ? "mem-write" : this.timeline.colorOf(group.queues[group.kind === "MXM" ? Math.min(1, group.queues.length - 1) : 0]);
        context.fillStyle = theme.colors[color];
        for (let p = 0; p < pixels; p++) {
          let sum = 0;
          for (let i = 0; i < group.queues.length; i++) sum += Math.min(1, shares[(2 * (line + i) + slot) * pixels + p]);
          if (!sum) continue;
          context.globalAlpha = Math.min(1, 0.12 + 2 * sum / group.queues.length);
          context.fillRect(GUTTER + p, 2 + index * each, 1, each - 0.5);
        }
      }
      line += group.queues.length;
    });
    return this.image;
  }

  /** The strip, the part that is in view, and the present cycle. */
  draw() {
    const { context, width, height } = prepare(this.canvas), cycles = this.clock.cycles;
    context.drawImage(this.strip(width, height), 0, 0, width, height);
    context.globalAlpha = 1;
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = theme.colors.dim;
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillText("whole program", GUTTER - 8, height / 2);
    const place = (cycle) => GUTTER + cycle * (width - GUTTER) / cycles;
    const left = place(this.app.view.from), right = Math.max(left + 3, place(this.app.view.to));
    context.fillStyle = theme.colors.panel;
    context.globalAlpha = 0.65;
    context.fillRect(GUTTER, 0, left - GUTTER, height);
    context.fillRect(right, 0, width - right, height);
    context.globalAlpha = 1;
    context.strokeStyle = theme.colors.accent;
    context.lineWidth = 1.5;
    context.strokeRect(left, 1, right - left - 1, height - 2);
    context.fillStyle = theme.colors.mark;
    context.fillRect(place(this.app.view.cycle), 0, 1.5, height);
  }

  listen() {
    const seek = (event) => {
      const share = (event.offsetX - GUTTER) / (this.canvas.clientWidth - GUTTER);
      const { from, to } = this.app.view, middle = share * this.clock.cycles;
      this.app.show(middle - (to - from) / 2, middle + (to - from) / 2);
    };
    const choose = (event) => {
      const cycles = [this.press.x, event.offsetX].map((x) => (x - GUTTER) / (this.canvas.clientWidth - GUTTER) * this.clock.cycles);
      this.app.show(Math.min(...cycles), Math.max(...cycles));
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.press = { x: event.offsetX, moved: false };
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!this.press || Math.abs(event.offsetX - this.press.x) < 4) return;
      this.press.moved = true;
      choose(event);
    });
    this.canvas.addEventListener("pointerup", (event) => {
      if (this.press && !this.press.moved) seek(event);
      this.press = null;
    });
  }
}
