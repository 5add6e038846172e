"use strict";
// Colours from the style sheet, names and numbers as text, and canvases as sharp as the screen.

/** What the timeline and the floor plan colour: index by kind of unit, as in UNIT_KINDS of lpu_jax/report/events.py. */
const KIND_COLORS = ["mem-read", "mem-write", "vxm", "mxm-load", "mxm-load", "mxm", "mxm", "sxm", "sxm", "sxm"];
const LEGEND = [
  ["mem-read", "MEM read"], ["mem-write", "MEM write"], ["vxm", "VXM"],
  ["mxm-load", "MXM load"], ["mxm", "MXM multiply"], ["sxm", "SXM"],
];
const SRAM_COLORS = ["sram-1", "sram-2", "sram-3", "sram-4", "sram-5", "sram-6", "sram-7"];

const theme = { colors: {}, rgb: {} };

/** Reads the colours of the present scheme. */
function readTheme() {
  const style = getComputedStyle(document.documentElement);
  for (const name of [
    "ground", "panel", "ink", "dim", "line", "faint", "accent", "mark", "other", "module-a", "module-b", "sram-rest",
    ...SRAM_COLORS, ...new Set(KIND_COLORS),
  ]) {
    const text = style.getPropertyValue(`--${name}`).trim();
    theme.colors[name] = text;
    theme.rgb[name] = [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
  }
}

function kindColor(kind) {
  return theme.colors[kind < 0 ? "other" : KIND_COLORS[kind]];
}

/** The colour of text on a unit's colour: black or white, whichever stands out more. */
function textOn(kind) {
  const [red, green, blue] = theme.rgb[kind < 0 ? "other" : KIND_COLORS[kind]];
  return 0.299 * red + 0.587 * green + 0.114 * blue > 125 ? "#101418" : "#ffffff";
}

const format = new Intl.NumberFormat("en-US");

/** A count with separators. */
function count(value) {
  return format.format(value);
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

/** The context of a canvas in CSS pixels, {context, width, height}; its bitmap fits the screen. */
function prepare(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  const wide = Math.round(width * ratio), high = Math.round(height * ratio);
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** Text that fits into `width` pixels, or nothing; characters count as 6 pixels. */
function fitted(text, width) {
  const room = Math.floor(width / 6);
  if (text.length <= room) return text;
  return room < 4 ? "" : `${text.slice(0, room - 1)}…`;
}

/** An element with text; children are elements or text. */
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}
