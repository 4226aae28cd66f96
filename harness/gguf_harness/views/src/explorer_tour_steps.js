/**
 * Steps of the guided tour. Each prepares its section (`enter`, false if the prompt cannot be read), and then says what
 * came out with the numbers of this model and this prompt. A step that the model cannot show is not `present`.
 */
import { h, number } from "./kit.js";
import { clearest, continuing, repeated, strongest } from "./explorer_heads.js";
import { settles } from "./explorer_pictures.js";
import { headName, percent, plural, quoted } from "./explorer_words.js";
import { DEFAULTS } from "./sampling.js";

/** From this mean weight on a head is worth a step. */
const WORTH = 0.2;
/** A head is needed if the probability falls below this share of what it was. */
const NEEDED = 0.75;
const WRITTEN = 16;
/** Bits per weight of a file that was not quantized. */
const FULL = 15.5;

const attends = ({ heads }) => heads.length > 0;
const predicts = ({ reading }) => Boolean(reading.prediction);
const found = (app, kind) => {
  const head = kind === "induction" ? continuing(app.heads) : strongest(app.heads, kind);
  return head && head.shares[kind] >= WORTH ? head : null;
};

/** The example that repeats itself most: on it heads can be seen at work. */
function example(app) {
  const pairs = (text) => {
    const words = text.split(/\s+/);
    return words.length - 1 - new Set(words.slice(1).map((word, at) => `${words[at]} ${word}`)).size;
  };
  return app.examples.reduce((best, { text }) => (best === null || pairs(text) > pairs(best) ? text : best), null) ?? app.prompt;
}

/** The tour's prompt is read, and nothing is off. */
async function ready({ app }) {
  const prompt = example(app);
  if (app.reading && app.prompt === prompt && !app.chat && !app.anythingOff) return true;
  return app.read(prompt, { chat: false, off: { heads: [], layers: [] }, from: "tour" });
}

/** The same, with a section loaded, and before it a head and a token chosen. */
const showing = (id, choose = () => {}) => async (page) => {
  if (!(await ready(page))) return false;
  choose(page.app);
  await page.sections[id].whole();
  return true;
};

/** Whose numbers a step tells, where there are two models. */
const whose = ({ compares, models }) => (compares ? `These are the numbers of ${models[0].short}; those of ${models[1].short} are beside them.` : "");
const toLast = (app) => app.choosePlace(app.last);

function chooseInduction(app) {
  const head = found(app, "induction");
  if (!head) return;
  app.chooseHead([head.layer, head.head]);
  const place = clearest(app.pattern, head.place, app.ids);
  if (place) app.choosePlace(place.query);
}

export const STEPS = [
  {
    title: "A text becomes tokens", section: "tokens", enter: showing("tokens", toLast),
    text: ({ app }) => {
      const { tokens } = app.reading;
      const added = !app.prompt.startsWith(tokens[0].text);
      return [
        `An example was filled in as the prompt. ${app.studied.short} reads it as ${plural(tokens.length, "token")}: pieces of text from its vocabulary of ${app.studied.vocabulary.toLocaleString("en-US")}.`,
        `A token may be a word, a part of one, or a sign. ␣ stands for a space: most words carry the one before them.${added ? ` The first token, ${quoted(tokens[0].text)}, was added: it marks the beginning.` : ""}`,
      ];
    },
  },
  {
    title: "Some tokens surprise", section: "tokens", present: predicts,
    enter: showing("tokens", (app) => app.choosePlace(surprises(app).most)),
    text: ({ app }) => {
      const { most, nll, again, others } = surprises(app);
      return [
        `At every token the model has expected something. It gave ${quoted(app.reading.tokens[most].text)} ${percent(Math.exp(-nll))}: its surprise, minus the logarithm of that, is ${nll.toFixed(1)} nats, the largest here.`,
        again === null ? "" : again < others
          ? `Where the text repeats itself, the model is surprised less: by ${again.toFixed(1)} nats per token on average, against ${others.toFixed(1)} elsewhere. How does it know? The next steps find out.`
          : `The text repeats itself, but this model is not surprised less there: by ${again.toFixed(1)} nats per token on average, against ${others.toFixed(1)} elsewhere.`,
      ];
    },
  },
  {
    title: "Heads look back", section: "attention", present: attends, enter: showing("attention"),
    text: ({ app }) => {
      const resting = app.heads.filter(({ kind }) => kind === "first").length;
      return [
        `${app.studied.short} has ${plural(app.heads.length, "head")} in ${plural(app.studied.heads.filter(Boolean).length, "layer")}, and each is a tile here. In every head, each token shares out 100 % of its weight among itself and the tokens before it.`,
        resting ? `${resting} of these heads ${resting === 1 ? "rests" : "rest"} mostly on the first token: that is where heads look when they find nothing to take.` : "",
        ...app.studied.facts,
      ];
    },
  },
  {
    title: "A head that looks one token back", section: "attention", present: (app) => attends(app) && found(app, "previous") !== null,
    enter: showing("attention", (app) => { const { layer, head } = found(app, "previous"); app.chooseHead([layer, head]); }),
    text: ({ app }) => {
      const head = found(app, "previous");
      return [
        `Head ${headName([head.layer, head.head])} is chosen now: layer ${head.layer}, head ${head.head}. It puts ${percent(head.shares.previous)} of its weight on the token just before: a line beside the diagonal.`,
        "So each token learns what stood before it. That sounds like little, but another head needs it.",
      ];
    },
  },
  {
    title: "A head that continues repetitions", section: "attention", present: (app) => attends(app) && found(app, "induction") !== null,
    enter: showing("attention", chooseInduction),
    text: ({ app }) => {
      const head = found(app, "induction");
      const { query, key, weight } = clearest(app.pattern, head.place, app.ids);
      const { tokens } = app.reading;
      return [
        `Head ${headName([head.layer, head.head])} is an induction head on this prompt. Where a token came before, it looks at what followed it then, with ${percent(head.shares.induction)} of its weight on average.`,
        `See token ${query} ${quoted(tokens[query].text)}: ${percent(weight)} of its weight is on token ${key} ${quoted(tokens[key].text)}, which followed the same text before. Copy that, and the repetition goes on.`,
      ];
    },
  },
  {
    title: "How a head decides", section: "steps", present: (app) => attends(app) && ["q", "k", "v"].every((kind) => app.models[0].attention.includes(kind)),
    enter: showing("steps", chooseInduction),
    text: ({ app, sections }) => {
      const { data } = sections.steps.frame;
      const [query, [side]] = [Math.min(app.place, data.tokens.length - 1), data.heads[0].models];
      const key = side.weights[query].reduce((best, weight, at) => (weight > side.weights[query][best] ? at : best), 0);
      const product = side.products[query][key];
      return [
        `${found(app, "induction") ? "The same head" : "Head"} ${headName(app.head)}, at ${quoted(data.tokens[query])}. Its query is multiplied with the key of every token so far. The product with ${quoted(data.tokens[key])} is ${number(Number(product.toPrecision(3)))}; times ${number(side.scale)} that is ${number(Number((side.scale * product).toPrecision(3)))}.`,
        `Softmax makes weights of all of them, and ${quoted(data.tokens[key])} gets ${percent(side.weights[query][key])}. The values of the tokens, mixed by these weights, are what the head adds to the stream.`,
        whose(app),
      ];
    },
  },
  {
    title: "Everything adds up in the stream", section: "stream", present: ({ reading }) => Boolean(reading.views.stream), enter: showing("stream", toLast),
    text: ({ app, sections }) => {
      const { lines } = sections.stream.frame.data;
      const of = (group) => lines.find((line) => line.group === group)?.points ?? [];
      const points = of("stream");
      const sum = (group) => of(group).reduce((total, [, norm]) => total + norm, 0);
      const [attention, mlp] = [sum("attention adds"), sum("MLP adds")];
      return [
        `The last token is chosen. Its stream is a vector of ${app.studied.width ? `${app.studied.width.toLocaleString("en-US")} numbers` : "many numbers"}, which every layer reads and adds to: its length goes from ${points[0][1].toFixed(1)} after the first layer to ${points.at(-1)[1].toFixed(1)} after the last.`,
        attention && mlp ? `Added up over all layers, what attention adds is ${attention.toFixed(0)} long, and what the MLPs add ${mlp.toFixed(0)}.` : "",
        whose(app),
      ];
    },
  },
  {
    title: "The prediction takes shape", section: "lens", present: (app) => Boolean(app.reading.views.stream) && predicts(app), enter: showing("lens", toLast),
    text: ({ app, sections }) => {
      const [{ data }] = sections.lens.frames;
      const { token, from, last } = settles({ data });
      return [
        "What if the model stopped after this layer? The logit lens turns each layer's stream into a prediction.",
        `After the last layer “${token}” is first, with ${percent(data.values[last][0])}. It is first ${from === last ? "only there" : from === 0 ? "from the first layer on" : `from layer ${from} on`}${from > 0 ? `; the layer before has “${data.cells[from - 1][0].replaceAll("·", "␣")}” first` : ""}.`,
        whose(app),
      ];
    },
  },
  {
    title: "From probabilities to one token", section: "next", present: ({ reading }) => Boolean(reading.views.next_tokens),
    enter: async (page) => {
      if (!(await showing("next", toLast)(page))) return false;
      page.sections.next.frame.draw(page.sections.next.frame.data, { sampling: { ...DEFAULTS } });
      return true;
    },
    text: ({ app, sections }) => {
      const { kept } = sections.next.frame.el.shown;
      const { prediction } = app.reading;
      const count = kept.at(-1).filter(Boolean).length;
      return [
        `The likeliest next token is ${quoted(prediction.text)}, with ${percent(prediction.p[0])}${app.compares ? ` in ${app.models[0].short}` : ""}. Which one is written is drawn by lot, within limits.`,
        `llama.cpp's default settings were chosen just now: they leave ${plural(count, "token")} of ${app.studied.vocabulary.toLocaleString("en-US")} that can be drawn${app.compares ? ` from ${app.studied.short}` : ""}. Move the sliders to see how each setting cuts.`,
      ];
    },
    leave: async ({ sections }) => { if (sections.next.frame.data) sections.next.frame.draw(sections.next.frame.data, { sampling: undefined }); },
  },
  {
    title: "What if a head were missing?", section: "off", present: (app) => attends(app) && predicts(app),
    enter: async (page) => {
      if (!(await ready(page))) return false;
      const { layer, head } = missed(page.app);
      if (!(await page.app.switchOff({ heads: [[layer, head]], layers: [] }))) return false;
      await page.sections.off.whole();
      return true;
    },
    text: ({ app }) => {
      const { prediction, readings } = app.reading;
      const { layer, head, kind } = missed(app);
      const [before, after] = [prediction.p[app.unchanged], prediction.p[app.changed]];
      const [was, now] = [prediction.likeliest[app.unchanged], prediction.likeliest[app.changed]];
      return [
        `Head ${headName([layer, head])}${kind === "induction" ? ", the one that continues repetitions," : ""} was switched off just now. The probability of ${quoted(prediction.text)} after this prompt went from ${percent(before)} to ${percent(after)} in ${readings[app.unchanged].short}.`,
        after < NEEDED * before ? `So part of the prediction came through this head${now.text === was.text ? "" : `; without it ${quoted(now.text)} is likeliest`}.` : "So this head alone does not decide: others do the same, or it is not needed here. Switch more of them off to see.",
        "The next step switches it on again. Above, the picture of attention now shows the model with the head off beside the whole one.",
      ];
    },
    leave: ({ app }) => (app.anythingOff ? app.switchOff({ heads: [], layers: [] }) : undefined),
  },
  {
    title: "The model writes", section: "write", present: (app) => app.studied.predicts,
    enter: async (page) => {
      if (!(await showing("write")(page))) return false;
      const { writer } = page.sections.write;
      writer.inputs.limit.value = String(WRITTEN);
      writer.inputs.temperature.value = "0";
      writer.write();
      return true;
    },
    text: ({ app }) => [
      `Predict, append, predict again: ${app.studied.short} writes ${WRITTEN} tokens now, always the likeliest one.`,
      app.heads.length ? "The rows beside it are all heads at the newest token: where each looked when it was written. Choose any written token to go back to its moment." : "Choose any written token to see what else could have stood there.",
    ],
    leave: async ({ sections }) => { if (sections.write.writer.writing) sections.write.writer.end("Stopped."); },
  },
  {
    title: "What did quantization change here?", section: "next", present: (app) => app.compares && predicts(app),
    enter: showing("next", (app) => app.choosePlace(changes(app).most)),
    text: ({ app }) => {
      const { readings, tokens, prediction } = app.reading;
      const [one, other] = [readings[0].short, readings[app.unchanged].short];
      const { most, value, mean } = changes(app);
      return [
        `${other} was made from ${one}, with ${number(Number(app.studied.bits.toPrecision(3)))} instead of ${number(Number(app.models[0].bits.toPrecision(3)))} bits per weight. On this prompt its predictions differ by ${number(Number(mean.toPrecision(2)))} nats of KL divergence on average.`,
        `They differ most after token ${most} ${quoted(tokens[most].text)}: by ${number(Number(value.toPrecision(2)))} nats. That token is chosen now, and the bars show both models.`,
        `After the whole prompt, ${quoted(prediction.text)} has ${percent(prediction.p[0])} in ${one} and ${percent(prediction.p[app.unchanged])} in ${other}. One prompt is an example, not a measurement: the suites of gguf-harness measure whole texts, with error bars.`,
      ];
    },
  },
  {
    title: "What would quantization change?", section: "structure", present: (app) => !app.compares,
    enter: showing("structure"),
    text: ({ app }) => {
      const { short, quantization, bits } = app.studied;
      const full = bits >= FULL;
      return [
        `${short} is stored with ${number(Number(bits.toPrecision(3)))} bits per weight${quantization ? ` (${quantization})` : ""}. ${full ? "A quantized copy takes fewer, and predicts a little differently." : "It was made from a file with more of them, and predicts a little differently."} To see where, start the explorer with both files:`,
        h("pre", {}, full ? `gguf-harness explore QUANTIZED.gguf --reference ${app.studied.name}` : `gguf-harness explore ${app.studied.name} --reference ORIGINAL.gguf`),
        "Every picture then shows both, and this step tells what changed.",
      ];
    },
  },
];

/** The head that is switched off: the one that continues repetitions, or else one that does something. */
const missed = (app) => found(app, "induction") ?? found(app, "previous") ?? app.heads[0];

/** The most surprising token; mean surprise where the text repeats itself, null if it does not, and elsewhere. */
function surprises(app) {
  const values = app.reading.tokens.map(({ nll }) => nll[app.unchanged]);
  const most = values.reduce((best, value, at) => ((value ?? -1) > (values[best] ?? -1) ? at : best), 0);
  const again = repeated(app.ids);
  const mean = (some) => some.reduce((sum, value) => sum + value, 0) / some.length;
  const [known, others] = [true, false].map((is) => values.filter((value, at) => value !== null && again[at] === is));
  return { most, nll: values[most] ?? 0, again: known.length > 1 && others.length ? mean(known) : null, others: others.length ? mean(others) : null };
}

/** Where the candidate's predictions differ most from the reference's, by how much, and on average. */
function changes(app) {
  const values = app.reading.tokens.map(({ kld }) => kld[app.unchanged]);
  const most = values.reduce((best, value, at) => (value > values[best] ? at : best), 0);
  return { most, value: values[most], mean: values.reduce((sum, value) => sum + value, 0) / values.length };
}
