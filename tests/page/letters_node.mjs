// node letters_node.mjs GOLDEN: train in Node; prints what `learnAlike` found as JSON.
import fs from "node:fs";
import { learnAlike } from "./letters.mjs";

console.log(JSON.stringify(learnAlike(JSON.parse(fs.readFileSync(process.argv[2], "utf8")))));
