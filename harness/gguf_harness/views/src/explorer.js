/** The explorer's page: type a prompt, see inside the model, switch heads and layers off. */
import { h } from "./kit.js";
import { Explorer } from "./explorer_app.js";
import { attentionSection, lensSection, nextSection, stepsSection, streamSection, structureSection } from "./explorer_pictures.js";
import { modelCards, promptForm } from "./explorer_prompt.js";
import { stayAlive } from "./explorer_server.js";
import { switchedLine, switchesSection } from "./explorer_switches.js";
import { tokensSection } from "./explorer_tokens.js";
import { Tour } from "./explorer_tour.js";
import { problemNote, quoted } from "./explorer_words.js";
import { writeSection } from "./explorer_write.js";

const app = new Explorer();
const { title, elements } = modelCards(app);
const prompt = promptForm(app);
const made = [tokensSection, attentionSection, stepsSection, streamSection, lensSection, nextSection, switchesSection, writeSection, structureSection].map((make) => make(app));
const sections = Object.fromEntries(made.map((section) => [section.id, section]));
const tour = new Tour({ app, sections });
const lost = h("div", { class: "lost", role: "alert", hidden: true });
const loading = h("div", { role: "status" });
const ask = h("div", { hidden: true }, prompt.form);
const { nav, line } = sticky();

document.body.replaceChildren(
  lost,
  h("header", {}, h("div", { class: "brand-row" }, h("p", { class: "brand" }, "gguf-harness ", h("span", { class: "muted" }, "explore")), tour.button), title, loading, ...elements),
  h("main", {}, ask, nav, ...made.map(({ element }) => element)),
  tour.panel,
);
app.on("busy", () => document.body.classList.toggle("reading", app.busy));
begin();
stayAlive((there) => {
  lost.hidden = there;
  lost.replaceChildren(there ? "" : "The explorer's server does not answer. If it was ended in its terminal, start it again and open the address that it prints.");
});

/** Load the models, then read the first example, so that there is something to look at. */
async function begin() {
  const since = Date.now();
  const tell = () => { loading.textContent = `Loading ${document.body.dataset.models}${Date.now() - since > 2000 ? `: ${Math.round((Date.now() - since) / 1000)} seconds so far. Large files take a while` : ""}…`; };
  tell();
  const ticking = setInterval(tell, 1000);
  try {
    await app.loadModels();
    clearInterval(ticking);
    loading.replaceChildren();
    ask.hidden = false;
    const [first] = app.examples;
    if (first) {
      prompt.fill(first.text);
      await app.read(first.text);
    }
  } catch (problem) {
    if (problem.status === undefined) throw problem;
    title.textContent = "The model could not be loaded";
    loading.replaceChildren(problemNote(problem, begin));
  } finally {
    clearInterval(ticking);
  }
}

/** The bar that stays in sight: where to go, what is chosen, what switches do. */
function sticky() {
  const links = h("ul");
  const state = h("p", { class: "chosen-line", role: "status" });
  const bar = h("nav", { class: "bar-nav", "aria-label": "Sections", hidden: true }, links, state);
  const tell = () => {
    if (!app.reading) return;
    state.textContent = [
      `Token ${app.place} ${quoted(app.reading.tokens[app.place].text)}`, app.head ? `head ${app.head.join(".")}` : "", switchedLine(app),
    ].filter(Boolean).join(" · ");
  };
  app.on("sections", () => {
    const here = made.filter((section) => section.here);
    bar.hidden = here.length < 2;
    links.replaceChildren(...here.map(({ id, short }) => h("li", {}, h("a", { href: `#${id}` }, short))));
  });
  app.on("reading place head", tell);
  return { nav: bar, line: state };
}

/** What is shown, for tests. */
window.explorer = {
  app, sections, tour,
  get shown() {
    const { reading, place, head, off, busy } = app;
    return { readings: reading?.readings ?? [], tokens: reading?.tokens ?? [], prediction: reading?.prediction ?? null, kld: reading?.kld ?? [], place, head, off, busy, line: line.textContent,
      sections: made.filter((section) => section.here).map(({ id }) => id), loaded: made.filter(({ current }) => current).map(({ id }) => id) };
  },
};
