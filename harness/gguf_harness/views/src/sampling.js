/**
 * What llama.cpp can sample from a distribution: top-k, top-p, min-p and temperature, in the order of its default chain
 * (`common_params_sampling::samplers`; the samplers before and between these do nothing by default).
 */

/** llama.cpp's own settings, and those that change nothing. */
export const DEFAULTS = { topK: 40, topP: 0.95, minP: 0.05, temperature: 0.8 };
export const PLAIN = { topK: 0, topP: 1, minP: 0, temperature: 1 };

/**
 * @param {number[]} logprobs of the known tokens, in any order
 * @param {(temperature: number) => number | null} rest log of the sum over all other tokens of their probabilities
 *   raised to 1 / temperature; null if there are none
 * @param {number} known how many of the likeliest tokens are certain to be known: others may lie between the next ones
 * @returns {{ shares: number[], rest: number, kept: boolean[], tail: boolean, certain: boolean }} the probability of each
 *   token to be drawn, that of all others, which can be drawn, whether others can be, and whether the filters cut among
 *   the known tokens. If they cut beyond, shares are those without this cut.
 */
export function sample(logprobs, rest, known, { topK, topP, minP, temperature }) {
  let kept = logprobs.map((_, at) => at).sort((a, b) => logprobs[b] - logprobs[a]);
  let tail = rest(1) !== null;
  let certain = true;
  const largest = logprobs[kept[0]];
  const cut = (count) => { kept = kept.slice(0, Math.max(1, count)); tail = false; };
  if (topK > 0) cut(topK);
  if (topP < 1) {
    const total = kept.reduce((sum, at) => sum + Math.exp(logprobs[at]), tail ? Math.exp(rest(1)) : 0);
    let sum = 0;
    const last = kept.findIndex((at) => (sum += Math.exp(logprobs[at])) >= topP * total);
    if (!tail && last >= 0) cut(last + 1);
    else if (tail && last >= 0 && last < known) cut(last + 1);
    else if (tail) certain = false;
  }
  if (minP > 0) {
    const least = largest + Math.log(minP);
    const count = kept.filter((at) => logprobs[at] >= least).length;
    if (!tail || count < known) cut(count);
    else certain = false;
  }
  if (temperature <= 0) cut(1);
  const at = temperature > 0 ? temperature : 1;
  const weight = (value) => Math.exp((value - largest) / at);
  const others = tail ? Math.exp(rest(at) - largest / at) : 0;
  const total = kept.reduce((sum, each) => sum + weight(logprobs[each]), others);
  const chosen = new Set(kept);
  return {
    shares: logprobs.map((value, each) => (chosen.has(each) ? weight(value) / total : 0)),
    rest: others / total,
    kept: logprobs.map((_, each) => chosen.has(each)),
    tail,
    certain,
  };
}
