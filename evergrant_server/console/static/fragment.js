"use strict";
(async () => {
  const fragment = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
  const failed = (text, code, reference) => {
    document.querySelector(".mark").className = "mark bad";
    document.querySelector("h1").textContent = "This didn't work";
    document.querySelector("[role=status]").textContent = text;
    document.querySelector("code").textContent = reference ? code + ", reference " + reference : code;
    document.querySelector(".note").hidden = false;
  };
  try {
    const response = await fetch(location.pathname + "/fragment", {
      method: "POST",
      headers: { "Content-Type": "application/x-www-form-urlencoded" },
      body: fragment,
      credentials: "same-origin",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
    const result = await response.json();
    if (response.ok) location.replace(result.next);
    else failed(result.detail + " " + result.repair, result.code, result.reference);
  } catch {
    failed("The response could not be sent. Open your link again.", "callback_invalid");
  }
})();
