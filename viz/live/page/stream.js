// The task stream: a lane an executor, the last minute, moving. A lane's height at a moment is how
// busy it was, the colour the function that took most of the time, a red mark a failure.
//
// Lanes are drawn when something has come, into a sheet wider than what is seen; between that only
// the sheet moves, so that a frame costs the same whatever the number of tasks. Of a thousand lanes
// those in sight are drawn.

import {at, make, say, show} from "./dom.js";
import {inks, sharp} from "./palette.js";
import {count, counted, percent, ticking} from "./words.js";

const SPAN_S = 60;
const RING = 256; // bins kept a lane: more than the span has
const DELAY_S = 0.9; // how far the right edge is behind the clock: else it would wait for each bin
const AXIS = 20, HEAD = 20, GAP = 2;
const LANE_MIN = 9, LANE_MAX = 52;
const LEGEND_MAX = 8;
const FADING = 0.97; // what a function weighs in the legend, from one message to the next

class Lane {
  constructor(node, executor) {
    this.node = node;
    this.executor = executor;
    this.bin = new Int32Array(RING).fill(-1); // which bin is at that place of the ring
    this.busy = new Uint8Array(RING);
    this.number = new Int32Array(RING);
    this.tasks = new Uint32Array(RING);
    this.failed = new Uint32Array(RING);
  }
}

export class Stream {
  constructor(functions, now, tip) {
    this.functions = functions;
    this.now = now;
    this.tip = tip;
    this.lanes = new Map();
    this.rows = [];
    this.weights = [];
    this.origin_s = null;
    this.bin_s = 0.25;
    this.inks = inks();
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.visible = true;
    this.scroller = at("stream-scroller");
    new ResizeObserver(() => this.redraw()).observe(this.scroller);
    new IntersectionObserver(entries => {
      this.visible = entries[entries.length - 1].isIntersecting;
    }, {rootMargin: "200px"}).observe(this.scroller);
    this.scroller.addEventListener("scroll", () => this.redraw(), {passive: true});
    document.addEventListener("themechange", () => {
      this.inks = inks();
      this.redraw();
    });
    this.listen();
  }

  /** Takes in the bins of one message. */
  merge(stream) {
    // Another origin is another environment; the wall's clock may be set a little meanwhile.
    if (this.origin_s === null || Math.abs(stream.origin_s - this.origin_s) > 1) this.lanes.clear();
    this.origin_s = stream.origin_s;
    this.bin_s = stream.bin_s;
    const numbers = stream.functions.map(name => this.functions.number(name));
    this.weights = this.weights.map(weight => weight * FADING);
    const present = new Set();
    for (const given of stream.lanes) {
      const key = `${given.node}/${given.executor}`;
      present.add(key);
      if (!this.lanes.has(key)) this.lanes.set(key, new Lane(given.node, given.executor));
      this.take(this.lanes.get(key), given, stream, numbers);
    }
    for (const key of this.lanes.keys()) if (!present.has(key)) this.lanes.delete(key);
  }

  take(lane, given, stream, numbers) {
    for (let i = 0; i < stream.bins; i++) {
      const bin = stream.first_bin + i, place = bin % RING;
      const number = given.function[i] >= 0 ? numbers[given.function[i]] : -1;
      lane.bin[place] = bin;
      lane.busy[place] = given.busy[i];
      lane.number[place] = number;
      lane.tasks[place] = given.tasks[i];
      lane.failed[place] = given.failed[i];
      if (number >= 0) this.weights[number] = (this.weights[number] || 0) + given.busy[i];
    }
  }

  render(snapshot) {
    const hosts = new Map(snapshot.nodes.map(node => [node.id, node.host]));
    const lanes = [...this.lanes.values()].sort((a, b) => a.node - b.node || a.executor - b.executor);
    show(at("stream-empty"), lanes.length === 0);
    show(this.scroller, lanes.length > 0);
    const nodes = new Set(lanes.map(lane => lane.node)).size;
    this.place(lanes, hosts, nodes);
    say(at("stream-sum"), lanes.length ? `${counted(lanes.length, "lane")}, height: share of time busy` : "");
    this.legend();
    this.redraw();
  }

  /** Where each lane is on the sheet; a line of its own for each node. */
  place(lanes, hosts, nodes) {
    const room = this.scroller.clientHeight - AXIS - nodes * HEAD;
    this.laneHeight = Math.max(LANE_MIN, Math.min(LANE_MAX, Math.floor(room / Math.max(1, lanes.length)) - GAP));
    this.rows = [];
    let y = 0, node = null;
    for (const lane of lanes) {
      if (lane.node !== node) {
        node = lane.node;
        this.rows.push({y, title: `node ${node}${hosts.has(node) ? ` · ${hosts.get(node)}` : ""}`});
        y += HEAD;
      }
      this.rows.push({y, lane});
      y += this.laneHeight + GAP;
    }
    const tall = `${y + AXIS}px`;
    if (at("stream-sheet").style.height !== tall) at("stream-sheet").style.height = tall;
  }

  legend() {
    const heaviest = this.weights.map((weight, number) => [weight || 0, number]).filter(([weight]) => weight > 1)
      .sort((a, b) => b[0] - a[0]).slice(0, LEGEND_MAX).map(([, number]) => number).sort((a, b) => a - b);
    const wanted = heaviest.join(" ");
    if (wanted === this.offered) return;
    this.offered = wanted;
    at("stream-legend").replaceChildren(...heaviest.map(number => {
      const swatch = make("i.swatch");
      swatch.style.setProperty("--ink", this.functions.known[number]);
      const item = make("li", swatch, make("span", this.functions.names[number]));
      item.title = this.functions.names[number];
      return item;
    }));
  }

  /** The time at the right edge. */
  edge() {
    return this.now() - DELAY_S;
  }

  redraw() {
    this.stale = true;
    if (this.still.matches) this.frame();
  }

  /** Once a frame: draw what has come, else only move. */
  frame() {
    if (!this.visible || !this.rows.length) return;
    const edge = this.edge();
    // What is drawn reaches two seconds further; nothing comes when nothing changes.
    if (this.stale || edge > this.drawn_s + 1.5) this.draw(edge);
    const x = (this.drawn_s - edge) * this.pace;
    at("stream-plot").style.transform = `translateX(${x.toFixed(2)}px)`;
  }

  draw(edge) {
    const wide = this.scroller.clientWidth, tall = this.scroller.clientHeight;
    if (!wide || !tall) return;
    this.stale = false;
    this.drawn_s = edge;
    this.left = wide < 560 ? 40 : 64;
    this.pace = (wide - this.left) / SPAN_S;
    at("stream-view").style.height = at("stream-clip").style.height = `${tall}px`;
    at("stream-clip").style.left = `${this.left}px`;
    const top = this.scroller.scrollTop;
    const rows = this.rows.filter(row => row.y + this.laneHeight + GAP > top && row.y < top + tall - AXIS);
    this.drawFrame(rows, wide, tall, top);
    this.drawLanes(rows, wide - this.left, tall, top, edge);
  }

  drawFrame(rows, wide, tall, top) {
    const canvas = at("stream-frame"), ink = this.inks;
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${tall}px`;
    const pen = sharp(canvas, wide, tall);
    pen.clearRect(0, 0, wide, tall);
    pen.font = `11px ${getComputedStyle(this.scroller).fontFamily}`;
    pen.textBaseline = "middle";
    pen.save();
    pen.beginPath();
    pen.rect(0, 0, wide, tall - AXIS);
    pen.clip();
    for (const row of rows) {
      const y = row.y - top;
      if (!row.lane) {
        pen.fillStyle = ink.muted;
        pen.textAlign = "left";
        pen.fillText(row.title, 0, y + HEAD / 2 + 1);
        continue;
      }
      pen.fillStyle = ink.lane;
      pen.fillRect(this.left, y, wide - this.left, this.laneHeight);
      pen.fillStyle = ink.text;
      pen.textAlign = "right";
      pen.fillText(String(row.lane.executor), this.left - 8, y + this.laneHeight / 2 + 0.5);
    }
    pen.restore();
    pen.fillStyle = ink.muted;
    pen.textBaseline = "alphabetic";
    for (const ago of [60, 45, 30, 15, 0]) {
      const x = this.left + (SPAN_S - ago) * this.pace;
      pen.textAlign = ago === 60 ? "left" : ago ? "center" : "right";
      pen.fillText(ago === 60 ? "60 s ago" : ago ? `${ago} s` : "now", x, tall - 5);
    }
  }

  drawLanes(rows, wide, tall, top, edge) {
    const canvas = at("stream-plot"), ink = this.inks, ahead = Math.ceil(2 * this.pace);
    canvas.style.width = `${wide + ahead}px`;
    canvas.style.height = `${tall - AXIS}px`;
    const pen = sharp(canvas, wide + ahead, tall - AXIS);
    pen.clearRect(0, 0, wide + ahead, tall);
    const from = edge - SPAN_S;
    const first = Math.floor((from - this.origin_s) / this.bin_s);
    const last = first + Math.ceil((SPAN_S + 2) / this.bin_s) + 1;
    const xOf = bin => (this.origin_s + bin * this.bin_s - from) * this.pace;
    for (const row of rows) {
      if (row.lane) this.drawLane(pen, row.lane, row.y - top, Math.max(0, first), last, xOf, ink);
    }
  }

  drawLane(pen, lane, y, first, last, xOf, ink) {
    const tall = this.laneHeight;
    for (let bin = first; bin < last; ) {
      const place = bin % RING;
      if (lane.bin[place] !== bin || !lane.busy[place]) {
        bin++;
        continue;
      }
      // Neighbours that look the same are one rectangle.
      let end = bin + 1;
      for (let next = end % RING; end < last && lane.bin[next] === end && lane.busy[next] === lane.busy[place] && lane.number[next] === lane.number[place]; next = end % RING) end++;
      const height = Math.max(1.5, (tall * lane.busy[place]) / 100);
      pen.fillStyle = lane.number[place] >= 0 ? this.functions.known[lane.number[place]] : ink.muted;
      pen.fillRect(xOf(bin), y + tall - height, xOf(end) - xOf(bin) + 0.15, height);
      bin = end;
    }
    for (let bin = first; bin < last; bin++) {
      const place = bin % RING;
      if (lane.bin[place] === bin && lane.failed[place]) this.cross(pen, xOf(bin + 0.5), y + tall / 2, ink);
    }
  }

  cross(pen, x, y, ink) {
    for (const [width, style] of [[4.5, ink.surface], [2.2, ink.bad]]) {
      pen.lineWidth = width;
      pen.strokeStyle = style;
      pen.beginPath();
      pen.moveTo(x - 4, y - 4);
      pen.lineTo(x + 4, y + 4);
      pen.moveTo(x + 4, y - 4);
      pen.lineTo(x - 4, y + 4);
      pen.stroke();
    }
  }

  // --- pointing ---

  listen() {
    const {scroller} = this;
    scroller.addEventListener("pointermove", event => {
      const box = scroller.getBoundingClientRect(), y = event.clientY - box.top + scroller.scrollTop;
      const row = this.rows.find(one => one.lane && y >= one.y && y < one.y + this.laneHeight + GAP);
      const ago = SPAN_S - (event.clientX - box.left - this.left) / this.pace;
      if (!row || ago > SPAN_S || ago < 0) this.tip.hide();
      else this.tip.at(this.text(row.lane, ago), event.clientX, event.clientY);
    });
    scroller.addEventListener("pointerleave", () => this.tip.hide());
    scroller.addEventListener("blur", () => this.point(null));
    scroller.addEventListener("keydown", event => this.key(event));
  }

  text(lane, ago) {
    const bin = Math.floor((this.edge() - ago - this.origin_s) / this.bin_s), place = ((bin % RING) + RING) % RING;
    const where = `Executor ${lane.executor} of node ${lane.node}, ${ticking(ago)} ago`;
    if (lane.bin[place] !== bin || (!lane.busy[place] && !lane.tasks[place])) return `${where}\nidle`;
    const name = lane.number[place] >= 0 ? this.functions.names[lane.number[place]] : "several functions";
    const failed = lane.failed[place] ? `, ${count(lane.failed[place])} failed` : "";
    return `${where}\n${name}\n${percent(lane.busy[place], 100)} busy, ${counted(lane.tasks[place], "task")} ended${failed}`;
  }

  key(event) {
    const step = {ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (event.key === "Escape") this.point(null);
    const lanes = this.rows.filter(row => row.lane);
    if (!step || !lanes.length) return;
    event.preventDefault();
    const before = this.pointed || {index: step[0] ? -Math.sign(step[0]) : 0, ago: 1};
    const index = Math.max(0, Math.min(lanes.length - 1, before.index + step[0]));
    const ago = Math.max(0, Math.min(SPAN_S - 1, before.ago + step[1]));
    this.point({index, ago, row: lanes[index]});
  }

  /** The keyboard's pointer: a line on the lane, and its text shown and spoken. */
  point(pointed) {
    this.pointed = pointed;
    show(at("stream-cursor"), pointed !== null);
    if (!pointed) {
      this.tip.hide();
      return;
    }
    const {scroller} = this, {row, ago} = pointed, bottom = row.y + this.laneHeight + AXIS;
    if (row.y - HEAD < scroller.scrollTop) scroller.scrollTop = row.y - HEAD;
    if (bottom > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = bottom - scroller.clientHeight;
    const x = this.left + (SPAN_S - ago) * this.pace, y = row.y - scroller.scrollTop;
    const cursor = at("stream-cursor"), box = scroller.getBoundingClientRect();
    cursor.style.transform = `translate(${x.toFixed(1)}px, ${y}px)`;
    cursor.style.height = `${this.laneHeight}px`;
    const text = this.text(row.lane, ago);
    this.tip.at(text, box.left + x, box.top + y + this.laneHeight / 2);
    this.tip.speak(text);
  }
}
