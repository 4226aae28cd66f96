/** The model writes, token by token, and what each new token attends to is seen while it does. */
import { colors, h, legend, themed } from "./kit.js";
import { Section } from "./explorer_section.js";
import { Newest, listen } from "./explorer_server.js";
import { percent, plural, problemNote, quoted } from "./explorer_words.js";

const ENDS = { end: "The model ended its text.", limit: "As many tokens as were asked for.", context: "The model's context is full." };
const FIELDS = [
  { name: "limit", text: "most tokens", value: 40, min: 1, max: 512, step: 1 },
  { name: "temperature", text: "temperature", value: 0, min: 0, max: 3, step: 0.1 },
  { name: "top_k", text: "top-k (0: off)", value: 40, min: 0, max: 1000, step: 1 },
  { name: "top_p", text: "top-p", value: 0.95, min: 0, max: 1, step: 0.01 },
  { name: "seed", text: "seed", value: 1, min: 0, max: 2 ** 31 - 1, step: 1 },
];

export function writeSection(app) {
  const writer = new Writer(app);
  const section = new Section(app, {
    id: "write", title: "Write",
    lead: "Predict a token, append it, predict the next: that is how a model writes. Choose a token of the text to see what else could have stood there, and what all heads looked at when it was written. Temperature 0 always takes the likeliest token.",
    present: ({ models }) => models.at(-1).predicts,
    key: () => ["write", app.prompt, app.chat, app.off],
    load: () => true,
    draw: () => { writer.reset(); },
    body: writer.elements,
  });
  section.writer = writer;
  return section;
}

class Writer {
  constructor(app) {
    this.app = app;
    this.requests = new Newest();
    this.inputs = Object.fromEntries(FIELDS.map(({ name, value, text, ...limits }) => [name, h("input", { type: "number", value, required: true, ...limits })]));
    this.start = h("button", { type: "submit", class: "primary" }, "Write");
    this.stop = h("button", { type: "button", onclick: () => this.end("Stopped.") }, "Stop");
    this.load = h("button", { type: "button", onclick: () => this.readText() }, "Read this text");
    this.status = h("p", { class: "readout", role: "status" });
    this.notes = h("div");
    this.text = h("div", { class: "strip chosen-strip written", role: "group", "aria-label": "The text. Arrow keys choose a written token." });
    this.bars = h("div", { class: "bars", role: "group", "aria-label": "The five likeliest tokens of this step" });
    this.barsTitle = h("p", { class: "bar-title" });
    this.heat = new Heat();
    this.form = h("form", { class: "write-form", novalidate: true, onsubmit: (event) => { event.preventDefault(); this.write(); } },
      FIELDS.map(({ name, text }) => h("label", {}, text, this.inputs[name])), h("span", { class: "write-buttons" }, this.start, this.stop, this.load));
    this.result = h("div", { hidden: true }, this.text, h("div", { class: "write-sides" }, h("div", {}, this.barsTitle, this.bars), this.heat.element));
    this.elements = [this.form, this.notes, this.status, this.result];
    this.text.addEventListener("keydown", (event) => this.#move(event));
    this.reset();
  }

  /** The prompt changed: what was written belongs to another. */
  reset() {
    this.requests.stop();
    [this.steps, this.at, this.following] = [[], -1, true];
    this.result.hidden = true;
    this.notes.replaceChildren();
    this.status.textContent = "";
    this.#writing(false);
    this.#show();
  }

  get settings() {
    const number = (name) => Number(this.inputs[name].value);
    return { limit: number("limit"), sampling: { temperature: number("temperature"), top_k: number("top_k"), top_p: number("top_p"), seed: number("seed") } };
  }

  /** Write until the end, the limit, or `stop`. */
  async write() {
    const { app } = this;
    const wrong = FIELDS.find(({ name }) => !this.inputs[name].checkValidity());
    this.reset();
    if (wrong) {
      this.notes.replaceChildren(problemNote({ message: `${wrong.text} is “${this.inputs[wrong.name].value}”, expected ${wrong.min} to ${wrong.max}.` }));
      this.inputs[wrong.name].focus();
      return;
    }
    this.#writing(true);
    this.result.hidden = false;
    this.text.replaceChildren(h("span", { class: "given" }, app.reading.tokens.map(({ text }) => text.replaceAll("↵", "↵\n")).join("")));
    this.given = app.reading.tokens.map(({ text }) => text);
    this.status.textContent = "Writing…";
    try {
      await this.requests.run(async (signal) => {
        const body = { prompt: app.prompt, chat: app.chat, off: app.off, ...this.settings };
        for await (const { event, data } of listen("api/generate", body, signal)) {
          if (signal.aborted) return;
          if (event === "token") this.#add(data);
          else if (event === "problem") throw Object.assign(new Error(data.message), { status: 400, ...data, passing: false });
          else if (event === "end") this.#ended(`${ENDS[data.reason] ?? ""}`);
        }
      });
    } catch (problem) {
      if (problem.status === undefined) throw problem;
      this.#ended("");
      this.notes.replaceChildren(problemNote(problem, () => this.write()));
    }
    // Also where the stream broke off without a word.
    if (!this.requests.controller) this.#writing(false);
  }

  end(why) {
    this.requests.stop();
    this.#ended(why);
  }

  #ended(why) {
    this.#writing(false);
    this.status.textContent = `${plural(this.steps.length, "token")} written. ${why}`;
  }

  #writing(now) {
    this.writing = now;
    this.start.disabled = now;
    this.stop.disabled = !now;
    this.load.disabled = now || !this.steps?.length;
  }

  #add(step) {
    const at = this.steps.length;
    this.steps.push(step);
    const button = h("button", { type: "button", class: "token new", tabindex: -1, "aria-pressed": "false", onclick: () => { this.following = at === this.steps.length - 1; this.#choose(at, true); } }, shown(step).replaceAll("\n", "↵") || "∅");
    this.text.append(button, ...(/\n/.test(step.text) ? [h("br")] : []));
    if (this.following) this.#choose(at, false);
  }

  #choose(at, focus) {
    const buttons = [...this.text.querySelectorAll(".token")];
    if (at < 0 || at >= buttons.length) return;
    this.at = at;
    buttons.forEach((button, each) => { button.tabIndex = each === at ? 0 : -1; button.setAttribute("aria-pressed", String(each === at)); });
    if (focus) buttons[at].focus();
    this.#show();
  }

  #move(event) {
    const to = { ArrowLeft: this.at - 1, ArrowRight: this.at + 1, Home: 0, End: this.steps.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.following = to >= this.steps.length - 1;
    this.#choose(Math.max(0, Math.min(this.steps.length - 1, to)), true);
  }

  /** The chosen step: the likeliest tokens, and what the last token of the text looked at. */
  #show() {
    const step = this.steps[this.at];
    this.barsTitle.textContent = step ? `Step ${this.at + 1}: ${quoted(shown(step))} was written, with a probability of ${percent(step.p)}` : "";
    this.bars.replaceChildren(...(step?.top ?? []).map(([text, p]) => h("div", { class: "bar-row" },
      h("span", { class: "bar-name mono" }, quoted(text)),
      h("span", { class: "bar-track" }, h("span", { class: `bar ${text === shown(step) ? "chosen" : ""}`, style: `width: ${(100 * p).toFixed(2)}%` })),
      h("span", { class: "num" }, percent(p)))));
    const tokens = [...(this.given ?? []), ...this.steps.slice(0, Math.max(0, this.at)).map(shown)];
    this.heat.draw(step, tokens, this.app.studied);
    this.text.shown = { written: this.steps.map(({ text }) => text), ids: this.steps.map(({ id }) => id), p: this.steps.map(({ p }) => p), at: this.at, heat: this.heat.shown };
  }

  /** Take what was written as the prompt. */
  readText() {
    const written = textOf(this.steps);
    this.app.read(this.app.chat ? written : this.app.prompt + written, { chat: false });
    document.getElementById("prompt").focus();
  }
}

const shown = (step) => step.shown ?? step.text;

/** The written text; tokens that are parts of a character are put together. */
function textOf(steps) {
  const bytes = [];
  for (const step of steps) {
    const part = step.text.includes("\uFFFD") && /^(<[0-9A-F]{2}>)+$/.test(shown(step)) ? shown(step).match(/[0-9A-F]{2}/g).map((code) => parseInt(code, 16)) : new TextEncoder().encode(step.text);
    bytes.push(...part);
  }
  return new TextDecoder().decode(Uint8Array.from(bytes));
}

/** What the last token of the text looks at: a row for each head, a column for each token. */
class Heat {
  constructor() {
    this.title = h("p", { class: "bar-title" });
    this.canvas = h("canvas", { role: "img" });
    this.key = h("div");
    this.told = h("p", { class: "readout" });
    this.box = h("div", { class: "view" }, this.canvas);
    this.element = h("div", { class: "heat" }, this.title, this.key, this.box, this.told);
    this.canvas.addEventListener("pointermove", (event) => this.#tell(event));
    this.canvas.addEventListener("pointerleave", () => { this.told.textContent = ""; });
    new ResizeObserver(() => { if (this.given && Math.abs(this.box.clientWidth - this.width) > 4) this.draw(...this.given); }).observe(this.box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.given && this.draw(...this.given));
  }

  draw(step, tokens, model) {
    this.element.hidden = !step?.keys;
    this.shown = null;
    if (!step?.keys) return;
    this.given = [step, tokens, model];
    this.tokens = tokens;
    const bytes = Uint8Array.from(atob(step.attention), (character) => character.charCodeAt(0));
    const rows = model.heads.flatMap((count, layer) => Array.from({ length: count }, (_, head) => [layer, head]));
    const left = 26;
    this.width = this.box.clientWidth;
    const wide = Math.max(1.5, Math.min(16, ((this.width || 480) - left - 2) / step.keys));
    const high = Math.max(2, Math.min(12, 420 / rows.length));
    const [width, height] = [left + wide * step.keys + 2, high * rows.length + model.layers + 2];
    const ratio = devicePixelRatio || 1;
    Object.assign(this.canvas, { width: Math.ceil(width * ratio), height: Math.ceil(height * ratio) });
    this.canvas.style.cssText = `width: ${width}px; height: ${height}px`;
    this.canvas.setAttribute("aria-label", `What all ${rows.length} heads look at from the last token: rows are heads, columns are the ${step.keys} tokens so far`);
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const scale = colors(this.canvas, "share", [0, 1]);
    const table = Array.from({ length: 256 }, (_, byte) => scale(byte / 255));
    context.font = `10px ${getComputedStyle(this.canvas).fontFamily}`;
    context.textBaseline = "top";
    context.textAlign = "right";
    let labelled = -20;
    rows.forEach(([layer, head], row) => {
      const y = row * high + layer;
      if (head === 0 && y - labelled >= 11) {
        context.fillStyle = themed(this.canvas, "--muted");
        context.fillText(layer, left - 5, y);
        labelled = y;
      }
      for (let key = 0; key < step.keys; key++) {
        context.fillStyle = table[bytes[row * step.keys + key]];
        context.fillRect(left + key * wide, y, Math.max(1, wide - (wide > 5 ? 0.5 : 0)), Math.max(1, high - (high > 4 ? 0.5 : 0)));
      }
    });
    this.title.textContent = `What all ${rows.length} heads looked at from ${quoted(tokens.at(-1) ?? "")}`;
    if (!this.key.childNodes.length) this.key.append(legend(scale, "weight, square root", (value) => String(value)));
    this.layout = { left, wide, high, rows, keys: step.keys, bytes };
    this.shown = { heads: rows.length, keys: step.keys, weights: [...bytes].map((byte) => (byte / 255) ** 2) };
  }

  #tell(event) {
    const box = this.canvas.getBoundingClientRect();
    const { left, wide, high, rows, keys, bytes } = this.layout;
    const key = Math.floor((event.clientX - box.left - left) / wide);
    const row = rows.findIndex(([layer], at) => event.clientY - box.top < (at + 1) * high + layer);
    if (key < 0 || key >= keys || row < 0) return;
    this.told.textContent = `Head ${rows[row].join(".")}: ${percent((bytes[row * keys + key] / 255) ** 2)} of the weight on token ${key} ${quoted(this.tokens[key] ?? "")}.`;
  }
}
