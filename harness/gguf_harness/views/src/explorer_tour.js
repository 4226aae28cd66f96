/** The guided tour: a panel that goes through the sections, does something in each, and says what came out on this prompt. */
import { h } from "./kit.js";
import { STEPS } from "./explorer_tour_steps.js";

export class Tour {
  /** @param {{ app, sections: { [id: string]: Section } }} page */
  constructor(page) {
    this.page = page;
    this.at = -1;
    this.button = h("button", { type: "button", class: "primary", hidden: true, onclick: () => this.start() }, "Guided tour");
    this.count = h("p", { class: "muted tour-count" });
    this.title = h("h2", { id: "tour-title", tabindex: -1 });
    this.body = h("div", { class: "tour-body" });
    this.back = h("button", { type: "button", onclick: () => this.go(this.at - 1) }, "Back");
    this.next = h("button", { type: "button", class: "primary", onclick: () => (this.at + 1 < this.steps.length ? this.go(this.at + 1) : this.end()) }, "Next");
    this.stop = h("button", { type: "button", onclick: () => this.end() }, "End the tour");
    this.panel = h("aside", { class: "tour", role: "dialog", "aria-labelledby": "tour-title", hidden: true },
      this.count, this.title, this.body, h("div", { class: "tour-buttons" }, this.back, this.next, this.stop));
    addEventListener("keydown", (event) => { if (event.key === "Escape" && this.open) this.end(); });
    page.app.on("models", () => { this.button.hidden = false; });
  }

  get open() {
    return this.at >= 0;
  }

  async start() {
    const { app } = this.page;
    this.at = 0;
    this.steps = STEPS;
    this.panel.hidden = false;
    document.body.classList.add("touring");
    await this.go(0);
    // Which steps there are is known when the prompt of the tour was read.
    if (!this.open || !app.reading) return;
    this.steps = STEPS.filter((step) => !step.present || step.present(app));
    this.#label();
  }

  async go(at) {
    if (at < 0 || at >= this.steps.length) return;
    const run = (this.run = {});
    const [{ app }, step] = [this.page, this.steps[at]];
    this.panel.setAttribute("aria-busy", "true");
    await this.steps[this.at]?.leave?.(this.page);
    if (run !== this.run) return;
    this.at = at;
    this.#label();
    this.title.textContent = step.title;
    this.body.replaceChildren(h("p", { class: "muted" }, "One moment…"));
    this.#highlight(step.section);
    const said = await this.#enter(step);
    if (run !== this.run) return;
    this.body.replaceChildren(...said.filter(Boolean).map((each) => (typeof each === "string" ? h("p", {}, each) : each)));
    this.panel.removeAttribute("aria-busy");
    this.panel.scrollTop = 0;
    // Sections above may have changed their height.
    this.#highlight(step.section);
    this.title.focus({ preventScroll: true });
    app.tell("tour", { at, title: step.title });
  }

  async #enter(step) {
    const { app } = this.page;
    try {
      if (!(await step.enter(this.page))) return ["The prompt could not be read. The message at the prompt says why; then go on, or back."];
      return step.text(this.page);
    } catch (problem) {
      if (problem.status === undefined) throw problem;
      return [problem.message, problem.hint];
    } finally {
      app.tell("sections");
    }
  }

  #label() {
    this.count.textContent = `Step ${this.at + 1} of ${this.steps.length}`;
    this.back.disabled = this.at === 0;
    this.next.textContent = this.at + 1 < this.steps.length ? "Next" : "Done";
    this.stop.hidden = this.at + 1 === this.steps.length;
  }

  #highlight(id) {
    for (const each of document.querySelectorAll(".toured")) each.classList.remove("toured");
    const element = this.page.sections[id]?.element;
    if (!element || element.hidden) return;
    element.classList.add("toured");
    element.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth", block: "start" });
  }

  async end() {
    if (!this.open) return;
    const leaving = this.steps[this.at]?.leave?.(this.page);
    this.run = null;
    this.at = -1;
    this.panel.hidden = true;
    document.body.classList.remove("touring");
    for (const each of document.querySelectorAll(".toured")) each.classList.remove("toured");
    this.button.focus();
    await leaving;
  }
}
