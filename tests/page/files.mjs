/* Files of the disk, as `openModel` wants them. */
import fs from "node:fs";
import path from "node:path";

export const json = (file) => JSON.parse(fs.readFileSync(file, "utf8"));

/** read(name) for a folder: a file's bytes, or null. */
export const reader = (folder) => async (name) => {
  const file = path.join(folder, name);
  if (!fs.existsSync(file)) return null;
  const bytes = fs.readFileSync(file);
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
};
