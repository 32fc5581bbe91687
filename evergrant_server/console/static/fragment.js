"use strict";
(async () => {
  const said = location.hash.slice(1);
  history.replaceState(null, "", location.pathname);
  const failed = (text, code) => {
    document.querySelector(".mark").className = "mark bad";
    document.querySelector("h1").textContent = "This didn't work";
    document.querySelector("[role=status]").textContent = text;
    document.querySelector("code").textContent = code;
    document.querySelector(".note").hidden = false;
  };
  try {
    const answer = await fetch(location.pathname + "/fragment", {
      method: "POST",
      headers: { "Content-Type": "application/x-www-form-urlencoded" },
      body: said,
      credentials: "same-origin",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
    const heard = await answer.json();
    if (answer.ok) location.replace(heard.next);
    else failed(heard.detail + " " + heard.repair, heard.code);
  } catch {
    failed("The answer could not be passed on. Open the link that you were sent again.", "callback_invalid");
  }
})();
