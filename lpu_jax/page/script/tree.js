"use strict";
// Cycles by module: a tree whose nodes open and close; a click marks the instructions of a node in the timeline.

class Tree {
  constructor(app, container) {
    Object.assign(this, { app, container, program: app.program });
    this.total = Math.max(1, this.program.tree[1]);
    this.chosen = null;
    this.open = new Set([""]);
    for (const child of this.program.tree[3]) if (child[1] > 0.1 * this.total) this.open.add(child[0]);
    this.draw();
  }

  draw() {
    const head = element("div", "node node-head", element("span", "name", "module, then source line"),
      element("span", "number", "cycles"), element("span", "number", "share"), element("span", "", ""));
    this.container.replaceChildren(head);
    this.add(this.program.tree, [], 0);
  }

  add(node, path, depth) {
    const [name, cycles, busy, children] = node, key = path.join("/");
    const isOpen = this.open.has(key), hasChildren = children.length > 0;
    const twist = element("span", "twist", hasChildren ? (isOpen ? "▾" : "▸") : "");
    const label = element("span", "name", twist, depth ? name : `${name} (all)`);
    label.style.paddingLeft = `${12 * depth}px`;
    const share = element("span", "share", element("i"));
    share.firstChild.style.width = percent(cycles / this.total);
    const line = element("div", `node${hasChildren ? "" : " leaf"}${this.chosen === key && depth ? " chosen" : ""}`,
      label, element("span", "number", count(cycles)), element("span", "number", percent(cycles / this.total)), share);
    line.setAttribute("role", "treeitem");
    line.setAttribute("aria-level", String(depth + 1));
    line.title = this.busyText(busy);
    twist.addEventListener("click", (event) => {
      event.stopPropagation();
      this.toggle(key);
    });
    line.addEventListener("click", () => {
      if (hasChildren && !isOpen) this.open.add(key);
      this.app.markModule(this.chosen === key || !depth ? null : key);
    });
    this.container.append(line);
    if (isOpen) for (const child of children) this.add(child, [...path, child[0]], depth + 1);
  }

  busyText(busy) {
    const parts = this.program.kinds.map((kind, i) => [kind, busy[i]]).filter((part) => part[1]);
    return parts.length ? `busy unit cycles\n${parts.map(([kind, cycles]) => `${kind}: ${count(cycles)}`).join("\n")}` : "no unit works for it";
  }

  toggle(key) {
    if (this.open.has(key)) this.open.delete(key);
    else this.open.add(key);
    this.draw();
  }

  /** Shows a node as chosen and opens the way to it. */
  choose(key) {
    this.chosen = key;
    const parts = key === null ? [] : key.split("/");
    for (let i = 0; i < parts.length; i++) this.open.add(parts.slice(0, i).join("/"));
    this.draw();
  }
}
