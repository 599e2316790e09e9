"use strict";
// The page works without this script. It opens the minute of a link, sorts the minutes, and shows tooltips on the timeline.
const minutes = document.getElementById("minutes");
const tip = document.querySelector(".tip");

function openMinute(details, startS) {
  details.open = true;
  for (const row of minutes.querySelectorAll(".found")) row.classList.remove("found");
  const row = startS && details.querySelector(`tr[data-second="${startS}"]`);
  if (row) row.classList.add("found");
  (row || details).scrollIntoView({ block: row ? "center" : "start" });
  details.querySelector("summary").focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#m"]');
  const details = link && document.getElementById(link.getAttribute("href").slice(1));
  if (!details || details.tagName !== "DETAILS") return;
  event.preventDefault();
  history.replaceState(null, "", link.getAttribute("href"));
  openMinute(details, link.dataset.second);
});

function openNamed() {
  const details = /^#m\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
  if (details) openMinute(details);
}
window.addEventListener("hashchange", openNamed);
openNamed();

const sort = document.querySelector(".sort");
sort.hidden = false;
sort.addEventListener("click", (event) => {
  const order = event.target.dataset.order;
  if (!order) return;
  const key = (details) => Number(order === "rank" ? details.dataset.rank : details.id.slice(1));
  minutes.append(...[...minutes.children].sort((a, b) => key(a) - key(b)));
  for (const button of sort.children) button.setAttribute("aria-pressed", String(button === event.target));
});

function rowAt(event) {
  const strip = event.target.closest("#minutes .strip");
  if (!strip) return null;
  const box = strip.getBoundingClientRect();
  const second = Math.floor((60 * (event.clientX - box.left)) / box.width);
  const details = strip.closest("details");
  const startS = 60 * Number(details.id.slice(1)) + second;
  const rows = [...details.querySelectorAll("tbody tr")];
  return rows.filter((row) => Number(row.dataset.second) <= startS).pop();
}

minutes.addEventListener("pointermove", (event) => {
  const row = rowAt(event);
  tip.hidden = !row;
  if (!row) return;
  tip.textContent = [...row.cells].map((cell) => cell.textContent).join("\n");
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
});
minutes.addEventListener("pointerleave", () => { tip.hidden = true; });
