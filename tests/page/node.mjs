// node node.mjs FOLDER GOLDEN: compare in Node; prints what `agree` found as JSON.
import fs from "node:fs";
import path from "node:path";
import { agree } from "./agree.mjs";

const [folder, golden] = process.argv.slice(2);
const read = async (name) => {
  const file = path.join(folder, name);
  if (!fs.existsSync(file)) return null;
  const bytes = fs.readFileSync(file);
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
};
console.log(JSON.stringify(await agree(JSON.parse(fs.readFileSync(golden, "utf8")), read)));
