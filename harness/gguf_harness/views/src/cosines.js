/**
 * Cosines between words as a matrix, or what a candidate changed of them.
 *
 * data: {
 *   groups: [string], words: [[string]] of each group,
 *   models: [{ name, short, role, series, cosines: index }],
 *   cosines: [[matrix]]: of groups with each other, then of the words of each group; null where there is none,
 *   middle: number, domains: [of groups, of words], differences: [of groups, of words] | null; the same for all models
 * }
 */
import { choice, h, toggles } from "./kit.js";
import matrix from "./matrix.js";

function render({ model, el }) {
  const data = model.get("data");
  const base = data.models.find((each) => each.role === "reference");
  const first = data.models.findLast((each) => each.role === "candidate") ?? data.models[0];
  const state = model.get("cosines") ?? { model: data.models.indexOf(first), part: 0, kind: "cosine" };
  const change = (changes) => { Object.assign(state, changes); model.set("cosines", state); paint(); };
  const drawn = h("div", {});
  el.append(
    h("div", { class: "tools" },
      choice("Model", data.models.map((each, index) => [String(index), each.short]), String(state.model), (index) => change({ model: Number(index) })),
      choice("Words of", [["0", "all groups, by group"], ...data.groups.map((group, index) => [String(index + 1), group])], String(state.part), (index) => change({ part: Number(index) })),
      base && data.differences ? toggles("What is shown", [["cosine", "cosine"], ["difference", `difference from ${base.short}`]], state.kind, (kind) => change({ kind })) : null),
    drawn,
  );

  function paint() {
    const [own, before] = [data.cosines[data.models[state.model].cosines][state.part], base ? data.cosines[base.cosines][state.part] : null];
    const differs = state.kind === "difference" && before !== null;
    const values = differs ? own.map((row, y) => row.map((value, x) => (value === null || before[y][x] === null ? null : value - before[y][x]))) : own;
    const scale = differs
      ? { kind: "signed", domain: data.differences[Math.min(1, state.part)], title: "difference of the cosines" }
      : { kind: "signed", domain: data.domains[Math.min(1, state.part)], middle: data.middle, title: "cosine" };
    const names = state.part === 0 ? data.groups : data.words[state.part - 1];
    const label = state.part === 0 ? "group" : "word";
    drawn.replaceChildren();
    matrix.render({ model: { get: () => ({ x: { label, names }, y: { label, names }, values, scale, square: true, notes: notes(own, before, differs) }) }, el: drawn });
    el.shown = { model: data.models[state.model].name, part: state.part, kind: differs ? "difference" : "cosine", values, domain: drawn.shown.domain, names };
  }

  /** Both cosines beside their difference. */
  function notes(own, before, differs) {
    if (!differs) return undefined;
    const told = (value) => (value === null ? "none" : value.toFixed(4));
    return own.map((row, y) => row.map((value, x) => `${told(before[y][x])} in ${base.short}, ${told(value)} here`));
  }

  paint();
}

export default { render };
