// node letters_node.mjs GOLDEN: train in Node; prints what `learnAlike` found as JSON.
// node letters_node.mjs bigram NAMES: how near a table of pairs comes to the counted one.
import fs from "node:fs";
import { learnAlike, learnPairs } from "./letters.mjs";

const read = (name) => fs.readFileSync(name, "utf8"), [what, names] = process.argv.slice(2);
console.log(JSON.stringify(what === "bigram" ? learnPairs(read(names))
  : learnAlike(JSON.parse(read(what)))));
