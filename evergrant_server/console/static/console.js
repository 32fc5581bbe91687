// Copies the text of a field, and says so; without this script the button stays hidden.
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
