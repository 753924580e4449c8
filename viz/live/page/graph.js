// The graph of the shown run, a cell a subtree (or some neighbours), by state. States differ in
// form as well as in colour.

import {at, make, say, show} from "./dom.js";
import {inks, sharp} from "./palette.js";
import {count, counted, percent} from "./words.js";

const STATES = ["waiting", "ready", "placed", "running", "done", "failed", "lost"];
const SIDE_MAX = 26, SIDE_MIN = 5;

/** One cell of a side, in the form of its state. */
function drawCell(pen, x, y, side, state, share, ink) {
  const round = side > 9 ? 2 : 0;
  const box = (inset, height = side - 2 * inset, from = y + inset) => {
    pen.beginPath();
    pen.roundRect(x + inset, from, side - 2 * inset, height, round);
  };
  pen.lineWidth = 1;
  pen.strokeStyle = {waiting: ink.muted, ready: ink.accent, placed: ink.accent, running: ink.accent, done: ink.finished, failed: ink.bad, lost: ink.warn}[state] || ink.muted;
  pen.fillStyle = {placed: ink.placed, running: ink.placed, done: ink.finished, failed: ink.bad}[state] || ink.surface;
  pen.setLineDash(state === "waiting" ? [2, 2] : []);
  box(0.5);
  pen.fill();
  pen.stroke();
  pen.setLineDash([]);
  if (state === "running" && share > 0) {
    const height = Math.max(1, (side - 1) * Math.min(1, share));
    pen.fillStyle = ink.accent;
    box(0.5, height, y + side - 0.5 - height);
    pen.fill();
  }
  if (state === "ready" && side > 7) {
    pen.fillStyle = ink.accent;
    pen.fillRect(x + side / 2 - 1.5, y + side / 2 - 1.5, 3, 3);
  }
  if (state === "failed" || state === "lost") {
    pen.strokeStyle = state === "failed" ? ink.surface : ink.warn;
    pen.lineWidth = 1.5;
    pen.beginPath();
    pen.moveTo(x + side * 0.25, y + side * 0.75);
    pen.lineTo(x + side * 0.75, y + side * 0.25);
    if (state === "failed") {
      pen.moveTo(x + side * 0.25, y + side * 0.25);
      pen.lineTo(x + side * 0.75, y + side * 0.75);
    }
    pen.stroke();
  }
}

export class Graph {
  constructor(tip) {
    this.tip = tip;
    this.canvas = at("graph-cells");
    this.cells = [];
    this.legend = new Map();
    for (const state of STATES) {
      const swatch = make("canvas"), number = make("b"), item = make("li", swatch, make("span", state), number);
      this.legend.set(state, {swatch, number, item});
      at("graph-legend").append(item);
    }
    new ResizeObserver(() => this.draw()).observe(at("graph-body"));
    document.addEventListener("themechange", () => this.theme());
    this.canvas.addEventListener("pointermove", event => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => this.tip.hide());
    this.canvas.addEventListener("blur", () => this.point(-1));
    this.canvas.addEventListener("keydown", event => this.key(event));
    this.pointed = -1;
    this.theme();
  }

  theme() {
    this.inks = inks();
    for (const [state, {swatch}] of this.legend) {
      swatch.style.width = swatch.style.height = "12px";
      const pen = sharp(swatch, 12, 12);
      pen.clearRect(0, 0, 12, 12);
      drawCell(pen, 0, 0, 12, state, 0.5, this.inks);
    }
    this.draw();
  }

  render(snapshot) {
    const {subtrees} = snapshot;
    this.cells = subtrees ? subtrees.cells : [];
    const counts = new Map();
    for (const cell of this.cells) counts.set(cell.state, (counts.get(cell.state) || 0) + cell.subtree_count);
    for (const [state, {number, item}] of this.legend) {
      say(number, count(counts.get(state) || 0));
      item.classList.toggle("none", !counts.get(state));
    }
    show(at("graph-empty"), this.cells.length === 0);
    show(this.canvas, this.cells.length > 0);
    const merged = subtrees && this.cells.length < subtrees.count ? `, ${this.cells.length} cells` : "";
    say(at("graph-sum"), this.cells.length ? `${counted(subtrees.task_count, "task")} in ${counted(subtrees.count, "subtree")}${merged}` : "");
    this.draw();
  }

  /** The largest side with which all cells are in the box. */
  fit(wide, tall) {
    let side = SIDE_MAX;
    const fits = () => Math.floor((wide + this.gap) / (side + this.gap)) * Math.floor((tall + this.gap) / (side + this.gap)) >= this.cells.length;
    for (; side > SIDE_MIN; side -= 0.5) {
      this.gap = side > 10 ? 3 : side > 7 ? 2 : 1;
      if (fits()) break;
    }
    this.side = side;
    this.columns = Math.max(1, Math.floor((wide + this.gap) / (side + this.gap)));
  }

  draw() {
    const wide = this.canvas.clientWidth, tall = this.canvas.clientHeight;
    if (!wide || !tall || !this.cells.length) return;
    this.fit(wide - 2, tall - 2);
    const pen = sharp(this.canvas, wide, tall), step = this.side + this.gap;
    pen.clearRect(0, 0, wide, tall);
    this.cells.forEach((cell, index) => {
      const x = 1 + (index % this.columns) * step, y = 1 + Math.floor(index / this.columns) * step;
      drawCell(pen, x, y, this.side, cell.state, cell.task_count ? cell.done_count / cell.task_count : 0, this.inks);
      if (index === this.pointed) {
        pen.strokeStyle = this.inks.text;
        pen.lineWidth = 2;
        pen.strokeRect(x - 1, y - 1, this.side + 2, this.side + 2);
      }
    });
  }

  text(cell) {
    const which = cell.subtree_count > 1 ? `Subtrees ${count(cell.first)} to ${count(cell.first + cell.subtree_count - 1)}` : `Subtree ${count(cell.first)}`;
    const where = cell.node >= 0 ? ` on node ${cell.node}` : "";
    return `${which}: ${cell.state}${where}\n${count(cell.done_count)} of ${counted(cell.task_count, "task")} done (${percent(cell.done_count, cell.task_count)})`;
  }

  hover(event) {
    const box = this.canvas.getBoundingClientRect(), step = this.side + this.gap;
    const column = Math.floor((event.clientX - box.left - 1) / step), row = Math.floor((event.clientY - box.top - 1) / step);
    const cell = column >= 0 && column < this.columns && row >= 0 ? this.cells[row * this.columns + column] : undefined;
    if (cell) this.tip.at(this.text(cell), event.clientX, event.clientY);
    else this.tip.hide();
  }

  key(event) {
    if (event.key === "Escape") this.point(-1);
    const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns}[event.key];
    if (step === undefined || !this.cells.length) return;
    event.preventDefault();
    this.point(this.pointed < 0 ? 0 : Math.max(0, Math.min(this.cells.length - 1, this.pointed + step)));
  }

  point(index) {
    this.pointed = index;
    this.draw();
    if (index < 0) {
      this.tip.hide();
      return;
    }
    const box = this.canvas.getBoundingClientRect(), step = this.side + this.gap;
    const text = this.text(this.cells[index]);
    this.tip.at(text, box.left + (index % this.columns) * step + this.side, box.top + Math.floor(index / this.columns) * step + this.side);
    this.tip.speak(text);
  }
}
