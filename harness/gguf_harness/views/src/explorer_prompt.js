/** The top of the explorer's page: which models these are, and the prompt that they read. */
import { h } from "./kit.js";
import { built, plural, problemNote, stored } from "./explorer_words.js";

/** Models in words: how they are built and stored, what is special, and what cannot be shown. */
export function modelCards(app) {
  const title = h("h1", {}, "Loading…");
  const cards = h("div", { class: "model-cards" });
  const shared = h("ul", { class: "facts" });
  const missing = h("div", { class: "missing", role: "note", hidden: true });
  app.on("models", () => {
    const { models } = app;
    title.textContent = app.compares ? `${models.at(-1).name} beside ${models[0].name}` : models[0].name;
    document.title = `${title.textContent} · gguf-harness explore`;
    const common = models[0].facts.filter((fact) => models.every(({ facts }) => facts.includes(fact)));
    cards.replaceChildren(...models.map((model) => h("div", { class: "model-card" },
      app.compares ? h("h2", { class: "model-name" }, model.name, h("span", { class: "muted" }, model === models[0] ? " reference" : " studied")) : null,
      h("p", {}, built(model)), h("p", {}, stored(model)),
      model.facts.filter((fact) => !common.includes(fact)).map((fact) => h("p", {}, fact)))));
    shared.replaceChildren(...common.map((fact) => h("li", {}, fact)));
    shared.hidden = !common.length;
    const lacking = [...new Set(models.flatMap((model) => model.missing))];
    missing.hidden = !lacking.length;
    missing.replaceChildren(...lacking.map((sentence) => h("p", {}, sentence)));
  });
  return { title, elements: [cards, shared, missing] };
}

/** The prompt: typed, or one of the examples. */
export function promptForm(app) {
  const area = h("textarea", { id: "prompt", rows: 3, spellcheck: "false", autocomplete: "off", "aria-describedby": "prompt-keys", onkeydown: (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    read();
  } });
  const chat = h("input", { type: "checkbox", onchange: () => read() });
  const chatLabel = h("label", { class: "choice", hidden: true }, chat, " as a chat message, in the model's own template");
  const status = h("p", { class: "readout", role: "status" });
  const notes = h("div");
  const button = h("button", { type: "submit", class: "primary" }, "Read");
  const examples = h("div", { class: "tools", role: "group", "aria-label": "Examples" });
  const read = () => app.read(area.value, { chat: chat.checked });
  const form = h("form", { class: "prompt", novalidate: true, onsubmit: (event) => { event.preventDefault(); read(); } },
    h("label", { for: "prompt" }, "Prompt"), area,
    h("div", { class: "prompt-row" }, button, h("span", { class: "muted", id: "prompt-keys" }, "Ctrl + Enter reads it, too."), chatLabel),
    examples, notes, status);

  app.on("models", () => {
    chatLabel.hidden = !app.studied.chats;
    examples.replaceChildren(h("span", { class: "muted" }, "Examples:"), ...app.examples.map(({ title, text }) =>
      h("button", { type: "button", onclick: () => { chat.checked = false; area.value = text; read(); } }, title)));
    examples.hidden = !app.examples.length;
  });
  app.on("busy", ({ from }) => {
    button.setAttribute("aria-busy", String(app.busy));
    if (!app.busy) return;
    if (from !== "off") notes.replaceChildren();
    status.textContent = "Reading…";
  });
  app.on("problem", ({ problem, from, again }) => {
    status.textContent = "";
    if (from !== "off") notes.replaceChildren(problemNote(problem, again));
  });
  app.on("reading", () => {
    const { tokens, ms, notes: told } = app.reading;
    if (area.value !== app.prompt && document.activeElement !== area) area.value = app.prompt;
    chat.checked = app.chat;
    notes.replaceChildren(...told.map((note) => h("p", { class: "muted" }, note)));
    const time = ms.reduce((sum, each) => sum + each, 0);
    status.textContent = `Read ${plural(tokens.length, "token")}${app.compares ? " with both models" : ""} in ${time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(1)} s`}${app.anythingOff ? ", once with parts switched off" : ""}.`;
  });
  return { form, area, fill: (text) => { area.value = text; } };
}
