/** Sections of the explorer's page: each loads what it shows when it is near, and says what it waits for or what went wrong. */
import { h } from "./kit.js";
import { Newest } from "./explorer_server.js";
import { problemNote } from "./explorer_words.js";

const SOON = 150;

/** A place for a view: keeps what a person chose, draws again when the width or the theme changes. */
export class Frame {
  /**
   * @param {object} view a module of `views.js`.
   * @param {string} label what the picture is, for screen readers.
   * @param {(name: string, value: any) => void} [chosen] told of what a person chooses in the view.
   */
  constructor(view, label, chosen = () => {}) {
    [this.view, this.chosen, this.state] = [view, chosen, new Map()];
    this.el = h("div", { class: "view", role: "group", "aria-label": label });
    this.width = 0;
    new ResizeObserver(() => {
      if (this.data && this.el.clientWidth > 0 && Math.abs(this.el.clientWidth - this.width) > 4) this.redraw();
    }).observe(this.el);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  draw(data, chosen = {}) {
    this.data = data;
    for (const [name, value] of Object.entries(chosen)) this.state.set(name, value);
    this.redraw();
  }

  redraw() {
    if (!this.data || this.el.clientWidth === 0) return;
    this.clean?.();
    this.width = this.el.clientWidth;
    // While it is empty the page must not get shorter: it would scroll.
    this.el.style.minHeight = `${this.el.offsetHeight}px`;
    this.el.replaceChildren();
    const model = {
      get: (name) => (name === "data" ? this.data : this.state.get(name)),
      set: (name, value) => { this.state.set(name, value); this.chosen(name, value); },
      on() {}, off() {}, save_changes() {},
    };
    this.clean = this.view.render({ model, el: this.el });
    this.el.style.minHeight = "";
    // What scrolls must be reached by keyboard.
    if (this.el.scrollWidth > this.el.clientWidth + 1) this.el.tabIndex = 0;
    else this.el.removeAttribute("tabindex");
  }
}

/**
 * A section, which links call `short`. `present(app)` says whether the models and the prompt have it, `always` that it
 * needs no prompt, `key(app)` what its content depends on. `load(app, signal)` brings the content, and `draw(content, app)`
 * shows it in `body` and returns what it found, in a sentence.
 */
export class Section {
  constructor(app, { id, title, short = title, lead, present, key, load, draw, body, always = false }) {
    Object.assign(this, { app, id, short, always, present, key, load, drawContent: draw, near: false, shownKey: null });
    this.finding = h("p", { class: "finding" });
    this.lead = h("p", { class: "lead" }, lead);
    this.status = h("p", { class: "waiting", role: "status" });
    this.notes = h("div");
    this.body = h("div", { class: "body" }, body);
    this.element = h("section", { id, "aria-labelledby": `h-${id}`, hidden: true }, h("h2", { id: `h-${id}`, tabindex: -1 }, title), this.lead, this.finding, this.notes, this.status, this.body);
    this.requests = new Newest();
    new IntersectionObserver(([{ isIntersecting }]) => {
      this.near = isIntersecting;
      if (isIntersecting) this.update();
    }, { rootMargin: "500px" }).observe(this.element);
    app.on("models reading place head", () => this.update());
  }

  get here() {
    return !this.element.hidden;
  }

  /** Whether what it shows belongs to what is chosen now. */
  get current() {
    return this.here && this.shownKey === JSON.stringify(this.key(this.app));
  }

  /** Show or hide the section, and load what changed if it is near, or anyway. */
  async update(anyway = false) {
    const { app } = this;
    const here = Boolean(this.always ? app.models.length : app.reading) && this.present(app);
    if (this.element.hidden === here) {
      this.element.hidden = !here;
      app.tell("sections");
    }
    if (!here || !(this.near || anyway)) return;
    const key = JSON.stringify(this.key(app));
    if (key === this.shownKey) return;
    if (key === this.loadingKey) return this.loading;
    this.loadingKey = key;
    this.loading = this.#bring(key);
    await this.loading;
  }

  /** Everything that the section shows now is there when this resolves. */
  whole() {
    return this.update(true);
  }

  async #bring(key) {
    const { app } = this;
    const late = setTimeout(() => { this.status.textContent = "Computing…"; this.body.setAttribute("aria-busy", "true"); }, SOON);
    try {
      const content = await this.requests.run((signal) => this.load(app, signal));
      if (content === undefined || key !== this.loadingKey) return;
      this.notes.replaceChildren();
      this.finding.textContent = this.drawContent(content, app, this.body) ?? "";
      this.finding.hidden = !this.finding.textContent;
      this.body.hidden = false;
      this.shownKey = key;
    } catch (problem) {
      if (key !== this.loadingKey) return;
      if (problem.gone) {
        app.again();
        return;
      }
      if (problem.status === undefined) throw problem;
      this.#refuse(problem);
    } finally {
      clearTimeout(late);
      if (key === this.loadingKey) {
        this.loadingKey = null;
        this.status.textContent = "";
        this.body.removeAttribute("aria-busy");
      }
    }
  }

  #refuse(problem) {
    this.shownKey = null;
    this.finding.hidden = true;
    this.body.hidden = true;
    this.notes.replaceChildren(problemNote(problem, () => { this.notes.replaceChildren(); this.update(true); }));
  }
}
