// The theme searches in a worker, and browsers refuse workers to pages from disk. There an invisible frame of the same
// page does the work. (The theme's plugin `offline` looks for this file's name, and would fetch another one from a CDN.)

if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #waiting = [];
    #inside = null;

    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = (...urls) => Promise.all(urls.map((each) => run(inside, each)));
      run(inside, url).then(() => {
        this.#inside = inside;
        for (const data of this.#waiting) this.postMessage(data);
      });
    }

    postMessage(data) {
      if (this.#inside === null) this.#waiting.push(data);
      else this.#inside.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}

function run(inside, url) {
  return new Promise((resolve, reject) => {
    const script = inside.document.createElement("script");
    script.src = new URL(url, location.href).href;
    script.onload = resolve;
    script.onerror = reject;
    inside.document.body.append(script);
  });
}
