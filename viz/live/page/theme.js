// Light or dark, before anything is painted: as the system says, unless the reader chose. Not a
// module, because modules run after the first paint and the page would flash.
"use strict";
(() => {
  const NEXT = {auto: "light", light: "dark", dark: "auto"};
  const NAMES = {auto: "Auto", light: "Light", dark: "Dark"};
  const SAID = {auto: "as the system", light: "light", dark: "dark"};
  const system = matchMedia("(prefers-color-scheme: dark)");
  let choice = "auto";
  try {
    choice = localStorage.getItem("dagsched-theme") || "auto";
  } catch { /* storage is forbidden: the choice lasts as long as the page */ }
  if (!(choice in NEXT)) choice = "auto";

  function apply() {
    const dark = choice === "dark" || (choice === "auto" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = NAMES[choice];
      button.setAttribute("aria-label", `Colours: ${SAID[choice]}`);
    }
    document.dispatchEvent(new Event("themechange"));
  }

  apply();
  system.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      choice = NEXT[choice];
      try {
        localStorage.setItem("dagsched-theme", choice);
      } catch { /* as above */ }
      apply();
    });
    apply();
  });
})();
