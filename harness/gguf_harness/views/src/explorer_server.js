/** The explorer's server: requests that can be given up, texts that stream, and whether it is still there. */

const token = new URLSearchParams(location.search).get("token") ?? "";
const [SOONEST, LATEST] = [1000, 8000];

/** What the server says when it cannot answer: what was wrong, and the next step. */
export class Problem extends Error {
  constructor(status, message, hint) {
    super(message);
    this.status = status;
    this.hint = hint ?? "";
  }

  /** Whether the reading that was asked about is no longer there: reading again brings it back. */
  get gone() {
    return this.status === 410;
  }

  /** Whether asking again may help: the worker or the server ended. */
  get passing() {
    return this.status === 503 || this.status === 0;
  }
}

async function send(path, body, signal) {
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers: { Authorization: `Bearer ${token}`, ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The explorer's server does not answer.", "If it was ended in its terminal, start it again and open the address that it prints.");
  }
  if (response.ok) return response;
  const { message, hint } = await response.json().catch(() => ({}));
  throw new Problem(response.status, message ?? `The server answered with status ${response.status}.`, hint);
}

/** The answer to a request, as JSON. */
export async function ask(path, body, signal) {
  const response = await send(path, body, signal);
  return response.json();
}

/** Events of a stream, each as { event, data }. */
export async function* listen(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = block.split("\n").map((line) => line.match(/^(\w+): ?(.*)$/)).filter(Boolean);
      const data = fields.filter(([, name]) => name === "data").map(([, , text]) => text).join("\n");
      if (data) yield { event: fields.find(([, name]) => name === "event")?.[2] ?? "message", data: JSON.parse(data) };
    }
  }
}

/**
 * Holds a connection open, by which the server knows that a page looks at its models, and tries again when it is lost.
 *
 * @param {(there: boolean) => void} changed called when the server is lost, and when it is there again.
 */
export async function stayAlive(changed) {
  let [there, wait] = [true, SOONEST];
  const set = (now) => { if (now !== there) changed((there = now)); };
  for (;;) {
    try {
      const response = await send("api/alive");
      set(true);
      wait = SOONEST;
      const reader = response.body.getReader();
      while (!(await reader.read()).done);
    } catch (error) {
      // A refusal is an answer: the page's own requests say what is wrong.
      if (error instanceof Problem && error.status > 0) return;
    }
    set(false);
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(LATEST, 2 * wait);
  }
}

/** Runs one request at a time: a newer one gives up the one before. */
export class Newest {
  /** @returns the value, or undefined if a newer request came, or `stop` was called. */
  async run(work) {
    this.stop();
    const own = (this.controller = new AbortController());
    try {
      const value = await work(own.signal);
      return own.signal.aborted ? undefined : value;
    } catch (error) {
      if (own.signal.aborted || error.name === "AbortError") return undefined;
      throw error;
    } finally {
      if (this.controller === own) this.controller = null;
    }
  }

  stop() {
    this.controller?.abort();
    this.controller = null;
  }
}
