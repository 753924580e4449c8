// The table of functions, sorted as the reader likes.

import {at, attribute, fill, hint, make, say, show} from "./dom.js";
import {brief, count, counted, short} from "./words.js";

export class FunctionTable {
  constructor(functions) {
    this.functions = functions;
    this.by = "busy_s";
    this.falling = true;
    // A row is a place in the order, not a function: where two change places texts change, and
    // nothing on the page moves.
    this.rows = [];
    this.last = null;
    for (const head of at("functions-table").querySelectorAll("th")) {
      head.querySelector("button").addEventListener("click", () => this.sort(head.dataset.sort));
    }
    this.sayOrder();
  }

  sort(by) {
    this.falling = by === this.by ? !this.falling : by !== "name";
    this.by = by;
    this.sayOrder();
    if (this.last) this.render(this.last);
  }

  sayOrder() {
    for (const head of at("functions-table").querySelectorAll("th")) {
      attribute(head, "aria-sort", head.dataset.sort === this.by ? (this.falling ? "descending" : "ascending") : "none");
    }
  }

  row(index) {
    while (this.rows.length <= index) {
      const row = {swatch: make("i.swatch"), name: make("span.name"), bar: make("i.under")};
      for (const cell of ["busy", "mean", "longest"]) row[cell] = make("td");
      row.count = make("span");
      row.of = make("span.of");
      row.done = make("td", row.count, row.of);
      const head = make("th", make("span.function", row.swatch, row.name), row.bar);
      head.scope = "row";
      row.swatch.setAttribute("aria-hidden", "true");
      row.element = make("tr", head, row.done, row.busy, row.mean, row.longest);
      at("functions-rows").append(row.element);
      this.rows.push(row);
    }
    return this.rows[index];
  }

  render(snapshot) {
    this.last = snapshot;
    const {by} = this, sign = this.falling ? -1 : 1;
    const order = [...snapshot.functions].sort((a, b) =>
      sign * (by === "name" ? a.name.localeCompare(b.name) : a[by] - b[by]) || a.name.localeCompare(b.name));
    const all = order.reduce((sum, one) => sum + one.busy_s, 0);
    order.forEach((one, index) => {
      const row = this.row(index);
      show(row.element, true);
      say(row.name, one.name);
      hint(row.name, one.name);
      row.element.style.setProperty("--ink", this.functions.colour(one.name));
      fill(row.bar, "--share", all ? one.busy_s / all : 0);
      say(row.count, short(one.done_count));
      say(row.of, one.done_count === one.task_count ? "" : ` / ${short(one.task_count)}`);
      hint(row.done, `${count(one.done_count)} of ${count(one.task_count)}`);
      say(row.busy, brief(one.busy_s));
      say(row.mean, one.done_count ? brief(one.mean_s) : "–");
      say(row.longest, one.done_count ? brief(one.longest_s) : "–");
    });
    this.rows.slice(order.length).forEach(row => show(row.element, false));
    show(at("functions-empty"), order.length === 0);
    show(at("functions-table"), order.length > 0);
    say(at("functions-sum"), order.length ? `${counted(order.length, "function")}, ${brief(all)} of work` : "");
  }
}
