/** The stored report: draws pictures when they come near, sorts, filters and copies tables. */
import { choice, isDark, toggles } from "./kit.js";
import { copying } from "./copying.js";
import { filters, sorting } from "./tables.js";
import { VIEWS } from "./views.js";

const MOST_BUTTONS = 9;

/** A picture of the page: its data is read, and drawn, when it is first seen. */
class Picture {
  constructor(figure) {
    this.figure = figure;
    this.chosen = 0;
    this.el = figure.querySelector(".view");
    this.width = 0;
  }

  /** The panels are those of a model, a metric or the like, of which one is seen. */
  open() {
    if (this.panels) return;
    const { view, panels, state } = JSON.parse(this.figure.querySelector("script").textContent);
    this.view = VIEWS[view];
    this.panels = panels;
    this.state = new Map(Object.entries(state ?? {}));
    this.chosen = Math.max(0, panels.findIndex(({ opens }) => opens));
    if (panels.length > 1) {
      const options = panels.map(({ name }, index) => [String(index), name]);
      const choose = (index) => { this.chosen = Number(index); this.draw(); };
      this.el.before(panels.length > MOST_BUTTONS ? choice("Show", options, String(this.chosen), choose) : toggles("Show", options, String(this.chosen), choose));
    }
    this.draw();
  }

  draw() {
    this.clean?.();
    this.el.replaceChildren();
    const panel = this.panels[this.chosen];
    const meaning = this.figure.querySelector(".meaning");
    if (meaning) meaning.textContent = panel.meaning;
    const [state, el] = [this.state, this.el];
    const model = {
      get: (name) => (name === "data" ? panel.data : state.get(name)),
      set: (name, value) => state.set(name, value),
      on() {}, off() {}, save_changes() {},
    };
    this.width = el.clientWidth;
    this.clean = this.view.render({ model, el });
    // Only what is wider than its view scrolls in it. What is told of a mark of any other may reach over its edges.
    el.classList.remove("whole");
    el.classList.toggle("whole", el.scrollWidth <= el.clientWidth);
  }

  redraw() {
    if (this.panels) this.draw();
  }
}

const pictures = new Map([...document.querySelectorAll("figure[data-picture]")].map((figure) => [figure, new Picture(figure)]));

const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    pictures.get(target).open();
  }
}, { rootMargin: "400px" });
for (const figure of pictures.keys()) near.observe(figure);

const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const picture = pictures.get(target);
    if (picture.panels && Math.abs(picture.el.clientWidth - picture.width) > 4 && picture.el.clientWidth > 0) picture.draw();
  }
});
for (const figure of pictures.keys()) resized.observe(figure);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => pictures.forEach((picture) => picture.redraw()));

// On paper everything is open and drawn, as wide as the paper, in light colours; afterwards it is as it was.
let folds = [];
let wasDark = false;
addEventListener("beforeprint", () => {
  folds = [...document.querySelectorAll("details.suite:not([open])")];
  for (const fold of folds) fold.open = true;
  wasDark = isDark(document.documentElement);
  if (wasDark) {
    document.documentElement.dataset.theme = "light";
    for (const picture of pictures.values()) picture.redraw();
  }
  for (const picture of pictures.values()) picture.open();
});
addEventListener("afterprint", () => {
  for (const fold of folds) fold.open = false;
  if (!wasDark) return;
  delete document.documentElement.dataset.theme;
  for (const picture of pictures.values()) picture.redraw();
});

/** An anchor inside of a closed section opens it. */
function reveal() {
  const target = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  if (!target) return;
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", reveal);
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  if (link && link.hash === location.hash) reveal();
});
reveal();

sorting();
filters();
copying();
