/* A conversation as one row of tokens (`chat`): its turns with their markers, what of it still fits
   into the context, and the likeliest reply. Nothing here knows the page. */

const ROLES = { system: "<|system|>", user: "<|user|>", assistant: "<|assistant|>" };
const END_OF_TURN = "<|end|>";
const SPACE = "\\t-\\r\\x1c- \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const EMPTY = new RegExp(`^[${SPACE}]*$`);           // what Python's `strip` leaves nothing of

/** The markers' ids, { system, user, assistant, end }; an error if the tokenizer lacks one. */
export function markers(tokenizer) {
  const ids = new Map([...tokenizer.special].map(([id, content]) => [content, id]));
  return Object.fromEntries(Object.entries({ ...ROLES, end: END_OF_TURN }).map(([name, marker]) => {
    if (ids.has(marker)) return [name, ids.get(marker)];
    throw new Error(`This model does not know ${marker}: it never learned to hold a conversation.`);
  }));
}

/** Is there nothing in a turn? */
export const isEmpty = (content) => EMPTY.test(content);

/** An error names what is no conversation: an empty turn, or one that was another's. */
function check(messages) {
  let due = "user";
  for (const [n, { role, content }] of messages.entries()) {
    if (!(role in ROLES)) throw new Error(`Turn ${n + 1} has an unknown role, ${role}.`);
    if (isEmpty(content)) throw new Error(`Turn ${n + 1} of the ${role} is empty.`);
    if (role === "system" && n === 0) continue;
    if (role !== due) throw new Error(`Turn ${n + 1} is the ${role}'s where the ${due}'s was due.`);
    due = role === "user" ? "assistant" : "user";
  }
}

/** The turns, [{ role, content }], as one row of ids, with a blank before each text: so its first
    word is the token that it is elsewhere. A marker that somebody typed stays text. */
export function rowIds(tokenizer, messages) {
  const marker = markers(tokenizer);
  check(messages);
  return [tokenizer.endOfText, ...messages.flatMap(({ role, content }) =>
    [marker[role], ...tokenizer.encode(` ${content}`), marker.end])];
}

/** The text of a reply: its ids without the blank before it, and without the marker behind it. */
export function replyText(tokenizer, ids) {
  return tokenizer.decode(ids.filter((id) => !tokenizer.special.has(id))).replace(/^ /, "");
}

/** What the model reads before it answers the last turn: the row, and the marker of its own. */
export function chatIds(tokenizer, messages) {
  if (messages.at(-1)?.role !== "user") throw new Error("The last turn must be the user's.");
  return [...rowIds(tokenizer, messages), markers(tokenizer).assistant];
}

/** The turns that leave room for a reply of `most` tokens, or half the context: the oldest question
    goes first, and its answer with it; the system's turn and the last one stay. */
export function fitting({ tokenizer, model }, messages, most) {
  const limit = model.cfg.context_length;
  const room = limit + 1 - Math.min(most, Math.floor(limit / 2));      // the last is never read
  const system = messages.filter(({ role }) => role === "system");
  let turns = messages.slice(system.length);
  const size = () => rowIds(tokenizer, [...system, ...turns]).length + 1;
  while (turns.length > 2 && size() > room) turns = turns.slice(2);
  return [...system, ...turns];
}

/** A model with the tokens that it has read; what two prompts begin with is read once. */
export class Reader {
  constructor({ model, tokenizer }) {
    Object.assign(this, { model, cache: model.newCache(), ids: [] });
    this.stops = tokenizer.special;                  // no marker is a word
  }

  read(id) {
    this.stream = this.model.step(id, this.cache);
    this.ids.push(id);
  }

  likeliest() {
    const logits = this.model.logits(this.stream);
    return logits.reduce((best, v, id) => (v > logits[best] ? id : best), 0);
  }

  /** Read a prompt, then write at most `most` tokens: null for each one read, the id of each one
      written, a marker that ends the reply included. */
  *reply(prompt, most) {
    let same = 0;
    while (same < prompt.length - 1 && prompt[same] === this.ids[same]) same++;
    this.cache.length = this.ids.length = same;
    for (const id of prompt.slice(same)) {
      this.read(id);
      yield null;
    }
    for (let n = 0; n < most; n++) {
      const id = this.likeliest();
      yield id;
      if (this.stops.has(id) || this.ids.length === this.model.cfg.context_length) return;
      this.read(id);
    }
  }
}
