// Copies the text of a field, and says so; without this script the button stays hidden. Keeps the focus.
"use strict";
for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (button === null) return;
  const field = document.getElementById(button.dataset.copy);
  field.select();
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(field.value);
  } catch {
    said = "Press Ctrl-C";
  }
  button.textContent = said;
  document.getElementById("said").textContent = said;
});
// The focus was in what has been replaced: it goes to what stands there now, not to the top of the page.
document.addEventListener("htmx:after:swap", () => {
  const part = document.getElementById("results");
  if (part === null || document.activeElement !== document.body) return;
  part.tabIndex = -1;
  part.focus({ preventScroll: true });
});
