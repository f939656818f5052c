// node node.mjs FOLDER GOLDEN: compare in Node; prints what `agree` found as JSON.
import { agree } from "./agree.mjs";
import { json, reader } from "./files.mjs";

const [folder, golden] = process.argv.slice(2);
console.log(JSON.stringify(await agree(json(golden), reader(folder))));
