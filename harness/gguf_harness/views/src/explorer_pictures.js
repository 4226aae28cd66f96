/** The sections that show a view: attention, its steps, the stream, the logit lens, next tokens, the file. */
import attention from "./attention.js";
import lines from "./lines.js";
import matrix from "./matrix.js";
import nextTokens from "./next_tokens.js";
import qkv from "./qkv.js";
import structure from "./structure.js";
import { h, toggles } from "./kit.js";
import { KINDS, continuing, strongest } from "./explorer_heads.js";
import { Frame, Section } from "./explorer_section.js";
import { ask } from "./explorer_server.js";
import { offName, percent, plural, quoted } from "./explorer_words.js";

/** A model alone is no reference: it gets a colour. */
const tinted = (data) => (data.models.length > 1 ? data : { ...data, models: data.models.map((model) => ({ ...model, role: "candidate", series: 0 })) });

const placed = (app) => app.reading.tokens[app.place];

/** All heads, and one of them. A head that is chosen here is chosen everywhere. */
export function attentionSection(app) {
  let compared = "off";
  const frame = new Frame(attention, "Attention of all heads, and of one", (name, value) => { if (name === "head") app.chooseHead(value); });
  const controls = h("div");
  const draw = () => {
    const { readings } = app.reading;
    const both = app.changed > 0 && app.unchanged > 0;
    controls.replaceChildren(both ? toggles("Compare", [["off", "what being off changed"], ["reference", "what quantization changed"]], compared, (to) => { compared = to; draw(); }) : "");
    const keep = both ? (compared === "off" ? [app.unchanged, app.changed] : [0, app.unchanged]) : readings.map((_, at) => at);
    const names = keep.map((at) => readings[at].name);
    const models = app.named(app.reading.views.attention).models.filter(({ name }) => names.includes(name))
      .map((entry, at) => ({ ...entry, role: at === 0 ? "reference" : "candidate" }));
    frame.draw({ ...app.reading.views.attention, models }, app.head ? { head: app.head } : {});
    return attentionFinding(app);
  };
  app.on("head", () => {
    if (frame.data && frame.state.get("head")?.join() !== app.head.join()) frame.draw(frame.data, { head: app.head });
  });
  const section = new Section(app, {
    id: "attention", title: "Attention",
    lead: "In each layer, each head lets every token look back at earlier ones, and take something from those it looks at. Each tile is one head: its rows are tokens that look, its columns tokens looked at, in stronger colour where more of the weight goes. Head 3.0 is head 0 of layer 3.",
    present: ({ reading }) => Boolean(reading.views.attention),
    key: () => ["attention", app.reading.id],
    load: () => app.reading,
    draw,
    body: [controls, frame.el],
  });
  section.frame = frame;
  return section;
}

function attentionFinding(app) {
  const found = [["previous", strongest(app.heads, "previous")], ["induction", continuing(app.heads)]].filter(([kind, head]) => head && head.shares[kind] > 0.2);
  const told = found.map(([kind, head]) => `head ${head.layer}.${head.head} ${KINDS[kind].does} (${percent(head.shares[kind])} of its weight)`);
  const resting = app.heads.filter(({ kind }) => kind === "first").length;
  const rest = resting ? `${plural(resting, "head")} of ${app.heads.length} mostly ${resting === 1 ? "rests" : "rest"} on the first token.` : "";
  return [told.length ? `On this prompt, ${told.join("; ")}.` : "", rest].filter(Boolean).join(" ");
}

/** How the chosen head computes its weights for the chosen token. */
export function stepsSection(app) {
  const frame = new Frame(qkv, "Steps of attention of the chosen head", (name, value) => { if (name === "query") app.choosePlace(value); });
  const query = () => Math.min(app.place, frame.data.tokens.length - 1);
  app.on("place", () => {
    if (frame.data && section.shownKey && frame.state.get("query") !== query()) frame.draw(frame.data, { query: query() });
  });
  const section = new Section(app, {
    id: "steps", title: "One head, step by step", short: "Head steps",
    lead: "The chosen token asks with its query q; every earlier token answers with its key k. Their product is scaled, softmax turns the products into weights that add up to 1, and the values v of the tokens are mixed by these weights.",
    present: ({ reading, models }) => Boolean(reading.views.attention) && ["q", "k", "v"].every((kind) => models[0].attention.includes(kind)),
    key: () => ["steps", app.reading.id, app.head],
    load: (_, signal) => ask("api/steps", { id: app.reading.id, layer: app.head[0], head: app.head[1] }, signal),
    draw: (data) => {
      frame.draw(tinted(app.named(data)), { query: Math.min(app.place, data.tokens.length - 1), head: 0 });
      return stepsFinding(data, frame.state.get("query"), app);
    },
    body: [frame.el],
  });
  app.on("place", () => { if (section.shownKey) section.finding.textContent = stepsFinding(frame.data, query(), app); });
  section.frame = frame;
  return section;
}

function stepsFinding(data, query, app) {
  const { weights } = data.heads[0].models[0];
  const most = weights[query].reduce((best, weight, key) => (weight > weights[query][best] ? key : best), 0);
  return `Head ${app.head.join(".")}${app.compares ? ` of ${app.models[0].short}` : ""}: token ${query} ${quoted(data.tokens[query])} looks most at token ${most} ${quoted(data.tokens[most])}, with ${percent(weights[query][most])} of its weight.${query < app.place ? ` The chosen token ${app.place} is beyond the ${data.tokens.length} that are shown.` : ""}`;
}

/** A section whose picture belongs to the chosen token; the answer to the reading has it for the last one already. */
function atPlace(app, { view, path, first, label, finding, ...section }) {
  const frame = new Frame(view, label);
  return Object.assign(new Section(app, {
    ...section,
    key: () => [section.id, app.reading.id, app.place],
    load: (_, signal) => (first && app.place === app.last ? app.reading.views[first] : ask(path, { id: app.reading.id, place: app.place }, signal)),
    draw: (data) => {
      frame.draw(tinted(app.named(data)));
      return finding(data);
    },
    body: [frame.el],
  }), { frame });
}

export const streamSection = (app) => atPlace(app, {
  id: "stream", title: "Residual stream", short: "Stream", view: lines, path: "api/stream", first: "stream", label: "Norms of the residual stream by layer",
  lead: "Every token has a stream: a vector that goes through all layers. Attention and MLP of each layer read it and add to it. These are the lengths of the vectors at the chosen token.",
  present: ({ reading }) => Boolean(reading.views.stream),
  finding: ({ lines: drawn, models }) => {
    const ends = drawn.filter(({ group, model }) => group === "stream" && models[model].role === "reference").map(({ points }) => [points[0], points.at(-1)])[0];
    const adds = drawn.filter(({ group, model }) => group !== "stream" && models[model].role === "reference").map(({ group, points }) => {
      const [layer, norm] = points.reduce((best, point) => (point[1] > best[1] ? point : best));
      return `${group.replace("MLP", "the MLP")} most in layer ${layer} (${norm.toFixed(1)})`;
    });
    return ends ? `${app.compares ? `${app.models[0].short}: at` : "At"} ${quoted(placed(app).text)} the stream's length goes from ${ends[0][1].toFixed(1)} after the first layer to ${ends[1][1].toFixed(1)} after the last; ${adds.join(", ")}.` : "";
  },
});

export const nextSection = (app) => atPlace(app, {
  id: "next", title: "Next tokens", view: nextTokens, path: "api/next", first: "next_tokens", label: "The likeliest next tokens",
  lead: "The last stream becomes a probability for every token of the vocabulary. Sampling settings decide which of them may be drawn, and how often: move the sliders to see it.",
  present: ({ reading }) => Boolean(reading.views.next_tokens),
  finding: ({ pairs }) => {
    // With something off, what it changed; else what the candidate does.
    const { pieces, logprobs, model } = pairs.at(-1);
    const best = logprobs[0].reduce((top, value, at) => (value > logprobs[0][top] ? at : top), 0);
    const other = logprobs.length > 1 ? `; ${app.reading.readings[model].off ? `with ${offName(app.off)} off it is` : `${app.reading.readings[model].short} gives it`} ${percent(Math.exp(logprobs[1][best]))}` : "";
    return `After ${quoted(placed(app).text)}, ${app.models[0].short} finds ${quoted(pieces[best])} likeliest, with ${percent(Math.exp(logprobs[0][best]))}${other}.`;
  },
});

/** What each layer would predict, for each reading side by side. */
export function lensSection(app) {
  const sides = h("div", { class: "sides" });
  const frames = [];
  const section = new Section(app, {
    id: "lens", title: "Logit lens: the prediction takes shape", short: "Logit lens",
    lead: "The logit lens reads the stream after each layer as if it were the last one: the likeliest next tokens so far, first on the left. Read it from the top down.",
    present: ({ reading, models }) => Boolean(reading.views.stream) && models.every(({ predicts }) => predicts),
    key: () => ["lens", app.reading.id, app.place],
    load: (_, signal) => ask("api/lens", { id: app.reading.id, place: app.place }, signal),
    draw: (data) => {
      const { models } = app.named(data);
      while (frames.length < models.length) frames.push(new Frame(matrix, ""));
      sides.replaceChildren(...models.map(({ name, short }, at) => {
        frames[at].el.setAttribute("aria-label", `Likeliest next tokens after each layer of ${name}`);
        return h("div", {}, models.length > 1 ? h("h3", { class: "part", title: name }, short) : null, frames[at].el);
      }));
      models.forEach(({ data }, at) => frames[at].draw(data));
      return lensFinding(models[0], app);
    },
    body: [sides],
  });
  section.frames = frames;
  return section;
}

/** From which layer on the answer is at the top: { token, from, last }. */
export function settles({ data: { cells } }) {
  const tops = cells.map(([top]) => top.replaceAll("·", "␣"));
  const token = tops.at(-1);
  const differs = tops.findLastIndex((top) => top !== token);
  return { token, from: differs + 1, last: tops.length - 1 };
}

function lensFinding(model, app) {
  const { token, from, last } = settles(model);
  const name = `“${token}”`;
  return from === last
    ? `After ${quoted(placed(app).text)}, only the last layer of ${app.models[0].short} puts ${name} first.`
    : `After ${quoted(placed(app).text)}, ${name} is first from layer ${from} on in ${app.models[0].short}${from === 0 ? ": from the start" : ""}.`;
}

/** Every tensor of the file. */
export function structureSection(app) {
  let chosen = null;
  const frame = new Frame(structure, "Every tensor of the file, by layer and kind");
  const controls = h("div");
  const section = new Section(app, {
    id: "structure", title: "Inside the file", short: "File",
    lead: "All of this is computed from the tensors of one file. Quantization stores their weights with fewer bits: not all of them with the same.",
    always: true,
    present: () => true,
    key: () => ["structure", chosen],
    load: (_, signal) => ask("api/structure", { model: chosen ?? app.models.length - 1 }, signal),
    draw: (data) => {
      controls.replaceChildren(app.compares ? toggles("Model", app.models.map(({ short }, at) => [at, short]), chosen ?? app.models.length - 1, (to) => { chosen = to; section.update(true); }) : "");
      frame.draw(data);
      return structureFinding(data);
    },
    body: [controls, frame.el],
  });
  section.frame = frame;
  return section;
}

function structureFinding({ tensors }) {
  const by = new Map();
  for (const { type, weights } of tensors) by.set(type, (by.get(type) ?? 0) + weights);
  const total = [...by.values()].reduce((sum, each) => sum + each, 0);
  const told = [...by].sort(([, one], [, other]) => other - one).slice(0, 3).map(([type, weights]) => `${percent(weights / total)} in ${type}`);
  return `${plural(tensors.length, "tensor")} with ${plural(total, "weight")}: ${told.join(", ")}.`;
}
