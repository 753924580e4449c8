// What is asked of the server only when the reader wants it: why a task waits, and logs.

import {at, make, say, show} from "./dom.js";
import {counted} from "./words.js";

const PATIENCE_MS = 180;
const LOGS_EVERY_MS = 2000;
const LINES = 200;

async function get(path, query) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`, {cache: "no-store"});
  const content = await answer.json().catch(() => ({error: `the server answered ${answer.status}`}));
  if (!answer.ok) throw new Error(content.error || `the server answered ${answer.status}`);
  return content;
}

/** The choices of a select, kept while the reader has it open. */
function offer(select, choices) {
  const wanted = choices.map(([value, text]) => `${value}\t${text}`).join("\n");
  if (select.dataset.offered === wanted) return;
  const chosen = select.value;
  select.replaceChildren(...choices.map(([value, text]) => {
    const option = make("option", text);
    option.value = value;
    return option;
  }));
  if (choices.some(([value]) => value === chosen)) select.value = chosen;
  select.dataset.offered = wanted;
}

export class Why {
  constructor() {
    this.asked = 0;
    at("why-form").addEventListener("submit", event => {
      event.preventDefault();
      this.ask();
    });
    at("why-key").addEventListener("input", () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.complete(), PATIENCE_MS);
    });
    at("why-key").addEventListener("focus", () => this.complete());
  }

  render(snapshot) {
    offer(at("why-run"), snapshot.runs.map(run => [run.run_id, run.run_id]));
  }

  /** From elsewhere on the page: this task of this run. */
  about(run, key) {
    at("why-run").value = run;
    at("why-key").value = key;
    at("why").scrollIntoView({block: "nearest"});
    at("why-key").focus({preventScroll: true});
    this.ask();
  }

  async complete() {
    const run = at("why-run").value;
    if (!run) return;
    try {
      const {keys} = await get("api/keys", {run, like: at("why-key").value});
      at("why-keys").replaceChildren(...keys.map(key => {
        const option = make("option");
        option.value = key;
        return option;
      }));
    } catch { /* no suggestions; asking will say what is wrong */ }
  }

  async ask() {
    const run = at("why-run").value, key = at("why-key").value.trim(), number = ++this.asked;
    if (!run || !key) {
      this.answer(run ? "Which task? Type a part of its key to choose among those that have it." : "There is no run to ask about yet.", [], true);
      return;
    }
    try {
      const {text, story} = await get("api/why", {run, key});
      if (number === this.asked) this.answer(text, story, false);
    } catch (error) {
      if (number === this.asked) this.answer(error.message, [], true);
    }
  }

  answer(text, story, wrong) {
    show(at("why-empty"), false);
    show(at("why-text"), true);
    at("why-text").dataset.kind = wrong ? "wrong" : "right";
    say(at("why-text"), text);
    at("why-story").replaceChildren(...story.map(line => make("li", line)));
  }
}

export class Logs {
  constructor() {
    this.asked = 0;
    this.visible = false;
    new IntersectionObserver(entries => {
      this.visible = entries[entries.length - 1].isIntersecting;
      if (this.visible) this.load();
    }).observe(at("logs"));
    at("logs-who").addEventListener("change", () => this.load());
    at("logs-follow").addEventListener("change", () => this.load());
    setInterval(() => {
      if (this.visible && !document.hidden && this.live && at("logs-follow").checked) this.load();
    }, LOGS_EVERY_MS);
  }

  render(snapshot) {
    const choices = [];
    for (const node of snapshot.nodes) {
      choices.push([`${node.id}`, `node ${node.id}: broker`]);
      for (const one of node.executors) choices.push([`${node.id}/${one.id}`, `node ${node.id}: executor ${one.id}`]);
    }
    const had = at("logs-who").options.length;
    offer(at("logs-who"), choices);
    if (!had && choices.length) {
      const first = choices.find(([value]) => value.includes("/"));
      if (first) at("logs-who").value = first[0];
      if (this.visible) this.load();
    }
  }

  async load() {
    const who = at("logs-who").value, number = ++this.asked;
    if (!who) return;
    const [node, executor] = who.split("/");
    let lines, note = "";
    try {
      ({lines} = await get("api/logs", {node, ...(executor ? {executor} : {}), lines: LINES}));
    } catch (error) {
      lines = [];
      note = error.message;
    }
    if (number !== this.asked) return;
    const box = at("logs-lines"), text = lines.join("\n");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    show(at("logs-empty"), !lines.length);
    show(box, lines.length > 0);
    if (box.textContent !== text) {
      box.textContent = text;
      if (atEnd) box.scrollTop = box.scrollHeight;
    }
    say(at("logs-sum"), note || (lines.length ? (lines.length >= LINES ? `last ${LINES} lines` : counted(lines.length, "line")) : ""));
  }
}
