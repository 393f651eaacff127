"use strict";
{
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  prefersDark.addEventListener("change", name);
  name();
  button.hidden = false;

  const download = document.getElementById("download");
  const json = document.getElementById("record").textContent;
  download.href = URL.createObjectURL(new Blob([json], { type: "application/json" }));
  download.hidden = false;

  // What is folded away has to be on paper too.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
}
