/** Tokens, shares and models in words, the same everywhere on the page. */
import { h, number } from "./kit.js";

/** A token as it can be seen: spaces and ends of lines have signs. */
export const shape = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵") || "∅";

export const quoted = (text) => `“${shape(text)}”`;

/** A probability as per cent; never 0 or 100 where it is not. */
export function percent(share) {
  if (share === null || share === undefined) return "unknown";
  const value = 100 * share;
  if (value > 0 && value < 0.05) return "less than 0.1\u00a0%";
  if (value < 100 && value >= 99.95) return "more than 99.9\u00a0%";
  return `${value.toFixed(value < 9.95 || (value > 99 && value < 100) ? 1 : 0)}\u00a0%`;
}

export const plural = (count, word, many = `${word}s`) => `${count.toLocaleString("en-US")} ${count === 1 ? word : many}`;

/** `1.1` is layer 1, head 1. */
export const headName = ([layer, head]) => `${layer}.${head}`;

/** Decimal units with three significant digits. */
export function size(bytes) {
  for (const [unit, one] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (bytes >= 0.9995 * one) return `${Number((bytes / one).toPrecision(3))} ${unit}`;
  }
  return `${bytes} B`;
}

/** What is switched off, as `heads 1.1 and 3.0, layer 2`. */
export function offName({ heads, layers }) {
  const list = (names) => names.join(", ").replace(/, ([^,]*)$/, " and $1");
  return [
    heads.length ? `${heads.length > 1 ? "heads" : "head"} ${list(heads.map(headName))}` : "",
    layers.length ? `${layers.length > 1 ? "layers" : "layer"} ${list(layers)}` : "",
  ].filter(Boolean).join(", ");
}

/** How a model is built, in one sentence. */
export function built(model) {
  const counts = [...new Set(model.heads.filter((count) => count > 0))];
  const heads = !counts.length ? "" : counts.length === 1 && model.heads.every((count) => count > 0) ? ` of ${plural(counts[0], "head")} each` : `, ${plural(model.heads.reduce((sum, count) => sum + count, 0), "head")} in all`;
  const reads = model.context ? `, up to ${plural(model.context, "token")} of text` : "";
  return `${model.architecture}: ${plural(model.layers, "layer")}${heads}, a vocabulary of ${plural(model.vocabulary, "token")}${reads}.`;
}

/** How its file stores it, in one sentence. */
export function stored(model) {
  return `${model.quantization ? `${model.quantization}: ` : ""}${number(Number(model.bits.toPrecision(3)))} bits per weight, ${size(model.bytes)}.`;
}

/** Something that went wrong, where it went wrong, with a button where asking again may help. */
export function problemNote(problem, again) {
  return h("div", { class: "problem", role: "alert" },
    h("p", {}, h("strong", {}, problem.message)),
    problem.hint ? h("p", {}, problem.hint) : null,
    problem.passing ? h("p", {}, problem.status === 503 ? "Trying again starts the model anew." : "", " ", h("button", { type: "button", onclick: again }, "Try again")) : null);
}
