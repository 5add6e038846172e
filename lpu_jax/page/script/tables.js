"use strict";
// The report as tables: where the cycles are, what bounds them, units, bytes, streams, and what it all rests on.

function fillReport(container, program) {
  const { report } = program;
  const table = (title, heads, rows) => {
    const made = element("table");
    const cells = (tag, values) => element("tr", "", ...values.map((value, i) => element(tag, heads[i].startsWith("#") ? "number" : "", value)));
    made.append(element("thead", "", cells("th", heads.map((text) => text.replace("#", "")))));
    made.append(element("tbody", "", ...rows.map((row) => cells("td", row))));
    container.append(element("h3", "", title), made);
  };
  table("Cycles in order", ["block", "#from", "#trips", "#each", "#cycles"], [
    ...program.blocks.map((block) => [block.kind, count(block.start), count(block.iterations), count(block.cycles), count(block.total)]),
    ["skew", count(report.cycles - program.chip.skew_cycles), "", "", count(program.chip.skew_cycles)],
    ["all", "", "", "", count(report.cycles)],
  ]);
  table("Bounds", ["what", "#cycles", "#cycles / bound"], [
    ["dependencies (longest chain)", count(report.dependency_bound_cycles), ratio(report.cycles, report.dependency_bound_cycles)],
    ...Object.entries(report.bounds).map(([name, cycles]) => [
      name === "pcie" ? "pcie (not in the cycles)" : `${name}, always busy`, count(cycles), name === "pcie" ? "" : ratio(report.cycles, cycles),
    ]),
  ]);
  const chain = new Map();
  for (const [block, start, stop, name, source, reason] of program.chain) {
    const key = [name, source, reason].join("\n");
    chain.set(key, (chain.get(key) || 0) + (stop - start) * program.blocks[block].iterations);
  }
  const links = [...chain].sort((a, b) => b[1] - a[1]).slice(0, 20);
  table("The binding chain, all trips", ["module", "line", "waited for", "#cycles"], links.map(([key, cycles]) => {
    const [name, source, reason] = key.split("\n");
    return [name.replaceAll("/", "/\u200b"), source, reason || "nothing", count(cycles)]; // may break after a slash
  }));
  table("Units", ["kind", "#units", "#busy", "#idle", "#use", "#bytes in", "#bytes out"], program.kinds.map((kind) => {
    const mine = program.units.filter((unit) => unit[1] === kind), busy = mine.reduce((sum, unit) => sum + unit[2], 0);
    const all = mine.length * report.cycles, [bytesIn, bytesOut] = program.bytes[kind];
    return [kind, count(mine.length), count(busy), count(all - busy), percent(busy / Math.max(1, all)), count(bytesIn), count(bytesOut)];
  }));
  table("Products", ["formats", "#MACs, idle lanes counted"], Object.entries(program.macs).map(([name, macs]) => [name, count(macs)]));
  table("PCIe, apart from the cycles", ["way", "#bytes", "#µs"], [
    ["in", count(report.pcie_in_bytes), (report.pcie_in_seconds * 1e6).toFixed(2)],
    ["out", count(report.pcie_out_bytes), (report.pcie_out_seconds * 1e6).toFixed(2)],
  ]);
  container.append(element("h3", "", "What the figures rest on"),
    element("ul", "", ...[`accumulators: ${report.accumulators}`, ...report.assumptions].map((text) => element("li", "", text))));
}

function ratio(cycles, bound) {
  return bound ? `${(cycles / bound).toFixed(2)}` : "";
}
