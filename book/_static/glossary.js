// Bring up what a word means when it is pointed at, focused or tapped; Escape puts it away.
// Without scripts the word is a plain link into the glossary.
{
  const meanings = document.getElementById("glossary-tips").content;
  const article = document.querySelector("article");
  const GAP = 6, MARGIN = 16, LINGER = 250; // pixels, pixels, milliseconds
  let shown = null, timer = 0, touched = false;

  const hide = () => {
    clearTimeout(timer);
    if (shown) shown.tip.hidden = true;
    shown = null;
  };

  // Below the word, or above it where there is no room; never beyond the text or the window.
  const place = ({ link, tip }) => {
    const word = link.getClientRects()[0];
    const origin = (tip.offsetParent ?? document.body).getBoundingClientRect();
    const edge = document.documentElement.clientWidth - MARGIN;
    const right = Math.min(edge, article.getBoundingClientRect().right) - tip.offsetWidth;
    const below = word.bottom + GAP, above = word.top - GAP - tip.offsetHeight;
    const fits = below + tip.offsetHeight <= innerHeight || above < 0;
    tip.style.left = `${Math.max(MARGIN, Math.min(word.left, right)) - origin.left}px`;
    tip.style.top = `${(fits ? below : above) - origin.top}px`;
  };

  const show = (word) => {
    clearTimeout(timer);
    if (shown === word) return;
    hide();
    shown = word;
    word.tip.hidden = false;
    place(word);
  };

  const leave = () => {
    clearTimeout(timer);
    timer = setTimeout(hide, LINGER); // time to move onto the explanation
  };

  const prepare = (link, i) => {
    const id = link.hash.slice(1);
    const meaning = meanings.querySelector(`[data-term="${CSS.escape(id)}"]`);
    if (!meaning) return;
    const tip = document.createElement("div");
    Object.assign(tip, { id: `tip-${i}`, className: "term-tip", hidden: true });
    tip.setAttribute("role", "tooltip");
    tip.append(...meaning.cloneNode(true).childNodes);
    article.append(tip);
    link.setAttribute("aria-describedby", tip.id);

    const word = { link, tip };
    for (const part of [link, tip]) {
      part.addEventListener("pointerenter", (e) => e.pointerType === "mouse" && show(word));
      part.addEventListener("pointerleave", (e) => e.pointerType === "mouse" && leave());
    }
    link.addEventListener("focus", () => link.matches(":focus-visible") && !touched && show(word));
    link.addEventListener("blur", leave);
    link.addEventListener("click", (event) => {
      if (!touched || shown === word) return; // a second tap follows the link
      event.preventDefault();
      show(word);
    });
  };

  document.querySelectorAll("a.term").forEach(prepare);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("pointerdown", (event) => {
    touched = event.pointerType !== "mouse";
    const inside = shown && [shown.link, shown.tip].some((part) => part.contains(event.target));
    if (!inside) hide();
  }, true);
  document.addEventListener("keydown", () => { touched = false; }, true);
  addEventListener("resize", () => shown && place(shown));
}
