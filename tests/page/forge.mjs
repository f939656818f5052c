// node forge.mjs FOLDER REFUSED: no typed text becomes a marker, and no wrong turn passes; JSON.
import { chatIds, markers } from "../../book/_static/page/conversation.js";
import { openModel } from "../../book/_static/page/engine.js";
import { json, reader as files } from "./files.mjs";

const TEXTS = 2000, [folder, file] = process.argv.slice(2);
const { tokenizer } = await openModel(files(folder)), marker = markers(tokenizer);
const accepted = json(file).filter((messages) => {
  try { return chatIds(tokenizer, messages); } catch { return false; }
});

// Texts of whole markers, halves of them, and what may stand between; the same each time.
const names = [...tokenizer.special.values()];
const pieces = [...names, ...names.flatMap((name) => [name.slice(0, 3), name.slice(3), ` ${name}`]),
  "<", "|", ">", "<|", "|>", "|>\n", "end", "user", "\n", "\r\n", " ", "\u00a0", "\u200d", "\ufeff",
  "\0", "\ud83d", "\ude42", "🙂", "e\u0301", "a", "Hi.", "'s", "1", ...tokenizer.special.keys()];
let seed = 1;
const below = (n) => { seed = (seed * 48271) % 2147483647; return seed % n; };
const piece = () => pieces[below(pieces.length)];
const random = () => Array.from({ length: 1 + below(12) }, piece).join("");

const forged = [];
for (let n = 0; n < TEXTS; n++) {
  const messages = ["user", "assistant", "user"].map((role) => ({ role, content: `${random()}.` }));
  const found = chatIds(tokenizer, messages).filter((id) => tokenizer.special.has(id));
  const { user, assistant, end } = marker;
  const set = [tokenizer.endOfText, user, end, assistant, end, user, end, assistant];
  if (found.join() !== set.join()) forged.push(messages);
}
console.log(JSON.stringify({ accepted, forged, texts: TEXTS }));
