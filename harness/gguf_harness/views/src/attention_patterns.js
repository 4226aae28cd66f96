/** Attention patterns as the page stores them: square roots of weights as bytes, the lower triangle of each head. */

/** Bytes of a model by head, and the weights that they stand for. */
export function read(entry, tokens) {
  const bytes = Uint8Array.from(atob(entry.weights), (character) => character.charCodeAt(0));
  const side = entry.side;
  const each = (side * (side + 1)) / 2;
  const places = new Map(entry.heads.map(([layer, head], at) => [`${layer},${head}`, at]));
  // A table of squares, and a head's place looked up once for all of its cells: grids read millions of them.
  const squares = Float64Array.from({ length: 256 }, (_, code) => (code / 255) ** 2);
  return {
    ...entry,
    tokens: entry.tokens ?? tokens,
    has: (place) => places.has(place),
    /** Readers of a head's cells: its bytes, and its weights. */
    of: (place) => {
      const start = places.get(place) * each;
      const byte = (query, key) => bytes[start + (query * (query + 1)) / 2 + key];
      return { byte, weight: (query, key) => squares[byte(query, key)] };
    },
    firstOf: (place) => entry.first[places.get(place)],
  };
}

/** All weights of a head, rows first; what causal attention cannot see is 0. */
export function weights(pattern, place) {
  const { weight } = pattern.of(place);
  return Array.from({ length: pattern.side }, (_, query) =>
    Array.from({ length: pattern.side }, (_, key) => (key <= query ? weight(query, key) : 0)));
}

/** Whether two models read the same tokens, so that their weights can be subtracted. */
export function comparable(one, other) {
  return one !== null && other !== null && one.side === other.side && one.tokens.every((token, at) => token === other.tokens[at]);
}

/**
 * The largest weight, and the largest difference from the reference, of the given heads over all models: the ends of
 * the scales. The first row is left out: its only weight is 1.
 *
 * @param {number} from 1 if the first token is left out, else 0.
 */
export function reach(reference, candidates, places, from) {
  let [most, apart] = [0, 0];
  for (const pattern of [reference, ...candidates]) {
    if (pattern === null) continue;
    const compared = pattern !== reference && comparable(reference, pattern);
    for (const place of places) {
      if (!pattern.has(place)) continue;
      const own = pattern.of(place);
      const base = compared && reference.has(place) ? reference.of(place) : null;
      for (let query = 1; query < pattern.side; query++) {
        for (let key = from; key <= query; key++) {
          const weight = own.weight(query, key);
          most = Math.max(most, weight);
          if (base) apart = Math.max(apart, Math.abs(weight - base.weight(query, key)));
        }
      }
    }
  }
  // Differences of less than 0.004 are steps of the bytes: a scale that ends there would make pictures of them.
  return { most: most || 1, apart: Math.max(apart, 0.05) };
}
