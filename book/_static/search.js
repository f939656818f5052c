// Three repairs of the theme's search. Without this file it works, with less to read.
const dialog = document.getElementById("pst-search-dialog");
dialog?.setAttribute("aria-label", "Search");

if (typeof Search !== "undefined") {
  // An excerpt comes from the text of a chapter, not from the buttons around it.
  const wholePage = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const article = html.match(/<article[^]*<\/article>/);
    return wholePage(article ? `<div role="main">${article[0]}</div>` : html, anchor);
  };
  // A screen reader says how many pages were found.
  addEventListener("DOMContentLoaded", () => Search.status?.setAttribute("role", "status"));
}
