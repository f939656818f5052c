// node board.mjs DAYS: DAYS is [{ list, continuous, chunked }, ...] as JSON; prints the timelines and
// their figures, and the page's own requests at some rates.
import { figures, requests, simulate } from "../../book/_static/page/board.js";
import { json } from "./files.mjs";

const { days, rates } = json(process.argv[2]);
console.log(JSON.stringify({ own: rates.map((rate) => requests(rate)), days: days.map((day) => {
  const columns = simulate(day.list, day);
  return { columns, figures: figures(day.list, columns) };
}) }));
