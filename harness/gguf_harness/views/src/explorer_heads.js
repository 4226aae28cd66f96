/** What heads do on the prompt that was just read: measured on their patterns, in words that a stranger knows. */

/** From these mean weights on a head is named after what it does. Heads rest on the first token while they find nothing. */
const [CLEARLY, RESTING] = [0.3, 0.4];

/** What a head may do: how it is called, its sign in small tiles, and what its rows then look at. */
export const KINDS = {
  previous: { name: "previous token", sign: "P", does: "looks at the token just before" },
  induction: { name: "induction", sign: "I", does: "looks at what followed the same token earlier" },
  same: { name: "same token", sign: "S", does: "looks at an earlier copy of the same token" },
  first: { name: "first token", sign: "F", does: "rests on the first token" },
  itself: { name: "itself", sign: "T", does: "looks at the token itself" },
};

/**
 * Of each token: the tokens that came after its earlier copies, those that share the longest text with it. A copy right
 * before it is left out: what came after that is the token itself.
 *
 * @returns {number[][]} keys by query.
 */
export function followers(ids) {
  const shared = (one, other) => {
    let length = 0;
    while (one - length >= 0 && ids[one - length] === ids[other - length]) length++;
    return length;
  };
  return ids.map((_, query) => {
    let [longest, keys] = [1, []];
    for (let copy = 0; copy < query - 1; copy++) {
      const length = shared(copy, query);
      if (length > longest) [longest, keys] = [length, []];
      if (length === longest) keys.push(copy + 1);
    }
    return keys;
  });
}

/**
 * Mean weights of each head of a pattern on places that mean something.
 *
 * @param {object} pattern as `attention_patterns.read` returns it.
 * @param {number[]} ids of the prompt's tokens.
 * @returns {{ layer, head, place: string, shares: object, kind: string | null, atLast: number }[]} `atLast` is the
 *   weight of the last token on what followed it earlier.
 */
export function headKinds(pattern, ids) {
  const side = pattern.side;
  const next = followers(ids.slice(0, side));
  const repeats = next.flatMap((keys, query) => (keys.length ? [query] : []));
  const later = Array.from({ length: Math.max(0, side - 2) }, (_, at) => at + 2);
  return pattern.heads.map(([layer, head]) => {
    const { weight } = pattern.of(`${layer},${head}`);
    const mean = (queries, of) => (queries.length ? queries.reduce((sum, query) => sum + of(query), 0) / queries.length : 0);
    const total = (query, back) => next[query].reduce((sum, key) => sum + weight(query, key - back), 0);
    const shares = {
      previous: mean(later, (query) => weight(query, query - 1)),
      induction: mean(repeats, (query) => total(query, 0)),
      same: mean(repeats, (query) => total(query, 1)),
      first: mean(later, (query) => weight(query, 0)),
      itself: mean(later, (query) => weight(query, query)),
    };
    const [kind, share] = Object.entries(shares).filter(([name]) => name !== "first").reduce((best, each) => (each[1] > best[1] ? each : best));
    return { layer, head, place: `${layer},${head}`, shares, kind: share >= CLEARLY ? kind : shares.first >= RESTING ? "first" : null, atLast: total(side - 1, 0) };
  });
}

/** The induction head that matters for what comes after the prompt, or null. */
export function continuing(heads) {
  const score = ({ shares, atLast }) => shares.induction + atLast;
  const found = heads.reduce((best, each) => (!best || score(each) > score(best) ? each : best), null);
  return found && score(found) > 0 ? found : null;
}

/** The head that does something most of all, or null if the prompt gives no chance to see it. */
export function strongest(heads, kind) {
  const found = heads.reduce((best, each) => (!best || each.shares[kind] > best.shares[kind] ? each : best), null);
  return found && found.shares[kind] > 0 ? found : null;
}

/**
 * The place where an induction head shows best: a token that came before, and the one after it there. The last token,
 * after which the prediction comes, is preferred.
 *
 * @returns {{ query, key, weight } | null}
 */
export function clearest(pattern, place, ids) {
  const { weight } = pattern.of(place);
  const next = followers(ids.slice(0, pattern.side));
  const at = (query) => largest(next[query].map((key) => ({ query, key, weight: weight(query, key) })));
  const last = at(pattern.side - 1);
  return last?.weight >= 0.5 ? last : largest(next.map((_, query) => at(query)).filter(Boolean));
}

const largest = (places) => places.reduce((best, each) => (!best || each.weight > best.weight ? each : best), null);

/** Places whose token, and the one before it, came together before: what induction can predict. */
export function repeated(ids) {
  const seen = new Set();
  return ids.map((id, at) => {
    const pair = `${ids[at - 1]},${id}`;
    const known = at > 0 && seen.has(pair);
    if (at > 0) seen.add(pair);
    return known;
  });
}
