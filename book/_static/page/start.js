/* Brings the live parts of a page to life when they come near; till then a picture stands there. */
const PARTS = { tokens: "tokens.js", attention: "attention.js", machine: "machine.js",
  sampler: "sampler.js", story: "sampler.js", cache: "cache.js",
  kin: "kin.js", graph: "graph.js", trainer: "trainer.js", chat: "chat.js",
  zoo: "zoo.js", quantize: "quantize.js", batching: "batching.js", recording: "recorder.js" };
const ALONE = new Set(["graph", "trainer", "zoo", "quantize", "batching",
  "recording"]);                                       // run no shelf's model

async function wake(host) {
  const { live, text } = host.dataset, still = [...host.childNodes];
  try {
    const { default: build, at } = await import(new URL(PARTS[live], import.meta.url));
    const { currentModel, modelLine } = await import(new URL("shell.js", import.meta.url));
    if (!ALONE.has(live)) {
      await currentModel(at).catch((error) => { host.append(modelLine(host, at)); throw error; });
    }
    await build(host, { text, simple: live === "story", auto: live === "story" });
    host.classList.add("live-awake");
  } catch (error) {
    const line = host.querySelector(".live-model");  // from here another model can be chosen
    host.replaceChildren(...still);                  // the picture is better than nothing
    host.append(Object.assign(document.createElement("p"), { className: "live-count",
      textContent: `This part stays a picture: ${error.message} ` }));
    const again = Object.assign(document.createElement("button"), { type: "button",
      textContent: "Try again", onclick: () => { host.replaceChildren(...still); wake(host); } });
    host.lastChild.append(again);
    if (line) host.append(line);
  }
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((e) => e.isIntersecting)) {
    near.unobserve(entry.target);
    wake(entry.target);
  }
}, { rootMargin: "600px" });

for (const host of document.querySelectorAll("[data-live]")) near.observe(host);
if (document.querySelector(".predict, [data-progress]")) {
  import(new URL("predict.js", import.meta.url)).then(({ default: build }) => build());
}
