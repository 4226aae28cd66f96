/**
 * Analogies as words: which word a model finds for king - man + woman.
 *
 * data: {
 *   words: [string], families: [string],
 *   questions: [[family, a, b, c, d]]: a is to b as c is to d, indices,
 *   models: [{ name, short, role, series, answers: index }],
 *   answers: [[[word, rank of d] | null]], for each set of answers and question
 * }
 */
import { choice, h } from "./kit.js";

const FEW = 12;

function render({ model, el }) {
  const data = model.get("data");
  const base = data.models.find((each) => each.role === "reference");
  const candidates = data.models.filter((each) => each !== base);
  const right = (each, question) => data.answers[each.answers][question]?.[1] === 1;
  const all = data.questions.map((_, index) => index);
  const lost = (each) => all.filter((question) => base && data.answers[each.answers][question] && right(base, question) && !right(each, question));
  const worst = candidates.reduce((most, each) => (most && lost(most).length > lost(each).length ? most : each), undefined);
  const same = (question, one, other) => data.answers[one.answers][question]?.join() === data.answers[other.answers][question]?.join();
  const some = base && worst && all.some((question) => !same(question, base, worst));
  const state = model.get("analogies") ?? { model: data.models.indexOf(worst ?? data.models[0]), family: "", kind: some ? "changed" : "all", more: false };
  const change = (changes) => { Object.assign(state, { more: false }, changes); model.set("analogies", state); paint(); };
  const drawn = h("div", {});
  const kinds = [["changed", "changed"], ["lost", "lost"], ["won", "gained"], ["all", "all"]];
  el.append(
    h("div", { class: "tools" },
      candidates.length ? choice("Model", candidates.map((each) => [String(data.models.indexOf(each)), each.short]), String(state.model), (index) => change({ model: Number(index) })) : null,
      choice("Family", [["", "all"], ...data.families.map((family, index) => [String(index), family])], state.family, (family) => change({ family })),
      base && candidates.length ? choice("Show", kinds, state.kind, (kind) => change({ kind })) : null),
    drawn,
  );

  function paint() {
    const chosen = data.models[state.model];
    const columns = [base, chosen].filter((each, at, list) => each && list.indexOf(each) === at);
    const rank = (each, question) => data.answers[each.answers][question]?.[1] ?? Infinity;
    const both = all.filter((question) => columns.every((each) => data.answers[each.answers][question]));
    const gone = base ? both.filter((question) => right(base, question) && !right(chosen, question)) : [];
    const won = base ? both.filter((question) => !right(base, question) && right(chosen, question)) : [];
    const changed = base ? both.filter((question) => !same(question, base, chosen)) : [];
    const rows = { lost: gone, won, changed, all: both }[state.kind].filter((question) => state.family === "" || data.questions[question][0] === Number(state.family));
    // What was lost first, then what was gained, then the greatest factor between ranks; of equals a few of each family.
    const weight = (question) => (base ? 200 * gone.includes(question) + 100 * won.includes(question) + Math.abs(Math.log(rank(chosen, question) / rank(base, question))) : 0);
    const within = rows.map((question, at) => rows.slice(0, at).filter((each) => data.questions[each][0] === data.questions[question][0]).length);
    const order = new Map(rows.map((question, at) => [question, within[at]]));
    rows.sort((one, other) => weight(other) - weight(one) || order.get(one) - order.get(other));
    const told = rows.slice(0, state.more ? 300 : FEW);
    drawn.replaceChildren(
      h("p", {}, base && chosen !== base
        ? `${chosen.short} finds another word, or ranks the right one differently, in ${changed.length} of ${both.length} questions: ${gone.length} that ${base.short} had right are lost, ${won.length} are gained.`
        : `${chosen.short} has ${both.filter((question) => right(chosen, question)).length} of ${both.length} right.`),
      h("p", { class: "muted" }, "Each cell: the word that is nearest, and the rank of the right word."),
      told.length === 0 ? h("p", { class: "muted" }, "None.") : h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Analogies" }, h("table", { class: "analogies" },
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "question → right word"), columns.map((each) => h("th", { scope: "col" }, `${each.short} finds`)))),
        h("tbody", {}, told.map((question) => row(question, columns))))),
      told.length < rows.length && !state.more ? h("div", { class: "tools" }, h("button", { type: "button", onclick: () => change({ more: true }) }, `Show ${Math.min(300, rows.length)}`)) : "",
    );
    el.shown = { model: chosen.name, lost: gone.length, won: won.length, changed: changed.length, questions: both.length,
      rows: told.map((question) => ({ question: asked(question), right: data.words[data.questions[question][4]], found: columns.map((each) => found(each, question)) })) };
  }

  const asked = (question) => { const [, a, b, c] = data.questions[question].map((at, place) => (place ? data.words[at] : at)); return `${b} − ${a} + ${c}`; };
  const found = (each, question) => { const [word, rank] = data.answers[each.answers][question]; return [data.words[word], rank]; };

  function row(question, columns) {
    return h("tr", {}, h("th", { scope: "row" }, asked(question), " → ", h("span", { class: "is-right" }, data.words[data.questions[question][4]])), columns.map((each) => {
      const [word, rank] = found(each, question);
      return h("td", { class: rank === 1 ? "is-right" : "is-wrong" }, rank === 1 ? `✓ ${word}` : `✗ ${word}`, h("small", { class: "muted" }, ` rank ${rank}`));
    }));
  }

  paint();
}

export default { render };
