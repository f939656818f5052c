/* Predict, then reveal: a guess is committed before the answer opens, and kept in the browser. */
const KEY = "minigpt.reading";      // { page: { read: true, guesses: { id: { guess, right } } } }

export function memory() {
  try { return JSON.parse(localStorage.getItem(KEY)) ?? {}; } catch { return {}; }
}

export function remember(page, change) {
  const all = memory();
  const entry = all[page] ??= { read: false };
  entry.guesses ??= {};
  change(entry);
  try {
    localStorage.setItem(KEY, JSON.stringify(all));
  } catch { /* a private window has no memory */ }
}

/** "1,629,600" or "25 %" to a number; NaN if it is none. */
const number = (text) => {
  const plain = text.trim().replace("−", "-").replace(/[,\s](?=\d{3}\b)/g, "").replace(",", ".");
  return /^[-+]?\d*\.?\d+(e[-+]?\d+)?\s*[%\p{L}]*$/iu.test(plain) ? parseFloat(plain) : NaN;
};

/** Is a guess right? A number may be off by `within`; a shape or a word must be the same. */
export function isRight(guess, { answer, within, kind }) {
  if (kind !== "number") {
    const bare = (text) => (kind === "text" && /\d/.test(text) ? text.match(/\d+/g).join()
      : text.toLowerCase().replace(/[\s()[\]]|,$/g, ""));       // a shape is a list of numbers
    return bare(guess) === bare(answer);
  }
  const off = Math.abs(number(guess) - number(answer)), room = parseFloat(within || "0");
  const most = within?.includes("%") ? Math.abs(number(answer)) * room / 100 : room;
  return off <= most + 1e-9 * Math.abs(number(answer));
}

function prediction(box) {
  const { page, id, ...facts } = box.dataset, answer = box.querySelector("details");
  const form = box.querySelector("form"), says = box.querySelector(".predict-says");
  const commit = form.querySelector("button");

  function show({ guess, right }) {
    form.hidden = true;
    answer.open = true;
    says.textContent = `You said ${guess}. ` + (right ? "Right!" : `It is ${facts.answer}.`);
    box.classList.add(right ? "predict-right" : "predict-wrong");
  }

  form.hidden = false;
  answer.hidden = true;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const guess = (new FormData(form).get("guess") ?? "").trim();
    if (!guess) {
      says.textContent = "Commit to a guess first: a wrong one teaches more than none.";
      return;
    }
    if (facts.kind === "number" && Number.isNaN(number(guess))) {
      says.textContent = `“${guess}” is not a number: write it like 12.5 or 1,000.`;
      return;
    }
    const result = { guess, right: isRight(guess, facts) };
    remember(page, (entry) => { entry.guesses[id] = result; });
    answer.hidden = false;
    show(result);
    says.tabIndex = -1;
    says.focus();
  });
  commit.disabled = false;
  const kept = memory()[page]?.guesses?.[id];
  if (kept) { answer.hidden = false; show(kept); }
}

/** A chapter counts as read when its end has been on the screen. */
function watchEnd(page) {
  const end = document.querySelector(".prev-next-area, footer");
  if (!end) return;
  new IntersectionObserver((entries, watcher) => {
    if (!entries.some((e) => e.isIntersecting)) return;
    remember(page, (entry) => { entry.read = true; });
    watcher.disconnect();
  }).observe(end);
}

/** The page of progress: what was read, and how well the guesses went. */
function progress(table) {
  const all = memory();
  let right = 0, guessed = 0, read = 0;
  const rows = [...table.querySelectorAll("tr[data-page]")];
  for (const row of rows) {
    const entry = all[row.dataset.page] ?? {}, ids = row.dataset.ids.split(" ");
    const guesses = ids.map((id) => entry.guesses?.[id]).filter(Boolean);
    const good = guesses.filter((g) => g.right).length;
    read += Boolean(entry.read);
    guessed += guesses.length;
    right += good;
    row.querySelector(".progress-read").textContent = entry.read ? "to its end" : "";
    row.querySelector(".progress-guesses").textContent =
      guesses.length ? `${good} of ${guesses.length} right` : "";
  }
  const says = document.querySelector("[data-progress-says]");
  const left = rows.filter((row) => !row.querySelector(".progress-read").textContent);
  const next = left.find((row) => !row.dataset.level) ?? left[0];  // the tour comes first
  says.replaceChildren(`You have come to the end of ${read} of ${rows.length} chapters. Guesses: ` +
    `${guessed}, of them right: ${right}. `, ...(next ? ["Go on with ",
    next.querySelector("a").cloneNode(true), "."] : []));
  const forget = document.querySelector("[data-progress-forget]");
  forget.hidden = false;
  forget.onclick = () => {
    if (!confirm("Forget all chapters read and all guesses?")) return;
    try { localStorage.removeItem(KEY); } catch { /* nothing was kept */ }
    progress(table);
  };
}

export default function build() {
  document.querySelectorAll(".predict").forEach(prediction);
  const chapter = document.querySelector("[data-chapter]");
  if (chapter) watchEnd(chapter.dataset.chapter);
  document.querySelectorAll("table[data-progress]").forEach(progress);
}
