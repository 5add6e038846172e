"use strict";
// The page's data: one base64 text of one zlib stream. lpu_jax/page/pack.py describes its layout.

const ARRAY_TYPES = { int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array };

/** The program: the fields of the head, with columns as typed arrays (`rows.start` becomes program.rows.start). */
async function decodeProgram(base64) {
  const packed = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const headLength = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headLength)));
  const program = { ...head, rows: {}, flights: {}, links: { from: [], to: [] }, ops: {}, tensors: {} };
  let offset = 4 + headLength;
  for (const [name, type, length, isDelta] of head.columns) {
    const size = length * ARRAY_TYPES[type].BYTES_PER_ELEMENT;
    const values = new ARRAY_TYPES[type](buffer.slice(offset, offset + size)); // a copy, so that it is aligned
    offset += size;
    setColumn(program, name, isDelta ? runningSum(values) : values);
  }
  program.text = head.text === "" ? [] : head.text.split("\n");
  return program;
}

function setColumn(program, name, values) {
  const [group, field] = name.split(".");
  if (field === undefined) program[group] = values;
  else program[group][field] = values;
}

function runningSum(steps) {
  const sums = new Int32Array(steps.length);
  let sum = 0;
  for (let i = 0; i < steps.length; i++) sums[i] = sum = sum + steps[i];
  return sums;
}
