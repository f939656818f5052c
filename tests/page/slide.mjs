// node slide.mjs FOLDER TALK: the conversation that Python had, question by question; prints JSON.
import { chatIds, fitting, Reader, replyText } from "../../book/_static/page/conversation.js";
import { openModel } from "../../book/_static/page/engine.js";
import { json, reader as files } from "./files.mjs";

const [folder, file] = process.argv.slice(2), { most, told } = json(file), wrong = [];
const opened = await openModel(files(folder)), reader = new Reader(opened), messages = [];
for (const { asked, refused, said, read, left_out: leftOut, turns } of told) {
  messages.push({ role: "user", content: asked });
  const kept = fitting(opened, messages, most), ids = chatIds(opened.tokenizer, kept);
  const fits = ids.length <= opened.model.cfg.context_length;
  if (fits !== !refused) wrong.push(`${asked}: ${ids.length} tokens, refused: ${refused}`);
  if (refused) {
    messages.pop();
    continue;
  }
  if (ids.join() !== read.join()) wrong.push(`${asked}: reads ${ids}, not ${read}`);
  if (messages.length - kept.length !== leftOut) wrong.push(`${asked}: not ${leftOut} turns out`);
  const words = [...reader.reply(ids, most)].filter((id) => id !== null);
  const mine = replyText(opened.tokenizer, words);
  if (mine !== said) wrong.push(`${asked}: says ${mine}, not ${said}`);
  if (turns % 2) wrong.push(`${asked}: Python kept ${turns} turns`);
  if (said.trim()) messages.push({ role: "assistant", content: mine });
  else messages.pop();
}
console.log(JSON.stringify({ turns: told.length, wrong }));
