// Looks at a page of `mote bench` in a browser and says what is wrong with it, in an element with the id "wrong".
"use strict";
window.addEventListener("load", () => {
  const wrong = [];
  const record = JSON.parse(document.getElementById("record").textContent);
  const measured = record.measured.startup ?? record.measured.density;
  const root = document.documentElement;
  let texts = 0;

  // --- Colours ----------------------------------------------------------------------------------
  const parts = (colour) => {
    const numbers = colour.match(/[\d.]+/g)?.map(Number) ?? [];
    return { rgb: numbers.slice(0, 3), alpha: colour === "none" ? 0 : numbers[3] ?? 1 };
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => (value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [dark, bright] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  const inside = (box, x, y) => x >= box.left && x <= box.right && y >= box.top && y <= box.bottom;
  // What is drawn last of what is filled, stands before the text, and is below its middle.
  const behindSvgText = (text) => {
    const box = text.getBoundingClientRect();
    const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
    let found;
    for (const shape of text.ownerSVGElement.querySelectorAll("rect")) {
      if (!(shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING)) break;
      const style = getComputedStyle(shape);
      const { rgb, alpha } = parts(style.fill);
      if (alpha === 1 && style.fillOpacity === "1" && inside(shape.getBoundingClientRect(), x, y)) found = rgb;
    }
    return found;
  };
  const behindText = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const { rgb, alpha } = parts(getComputedStyle(at).backgroundColor);
      if (alpha === 1) return rgb;
    }
    return undefined;
  };
  const readable = (what, colour, behind) => {
    texts += 1;
    if (!behind) return wrong.push(`nothing is behind ${what}`);
    const found = contrast(parts(colour).rgb, behind);
    if (!(found >= 4.5)) wrong.push(`contrast ${found.toFixed(2)} of ${what}: ${colour} on ${behind}`);
  };

  const svgs = [...document.querySelectorAll("svg[data-plot]")];
  const seen = [];
  for (let turn = 0; turn < 2; turn += 1) {
    const name = getComputedStyle(document.body).backgroundColor;
    seen.push(name);
    for (const text of document.querySelectorAll("svg text")) readable(`"${text.textContent}" in ${name}`, getComputedStyle(text).fill, behindSvgText(text));
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || element.closest("svg, script, [hidden]")) continue;
      readable(`"${walker.currentNode.data.slice(0, 60)}" in ${name}`, getComputedStyle(element).color, behindText(element));
    }
    document.getElementById("theme").click();
  }
  if (seen[0] === seen[1]) wrong.push("the button for the theme does nothing");
  if (getComputedStyle(document.body).backgroundColor !== seen[0]) wrong.push("the button for the theme does not lead back");

  // --- Labels -----------------------------------------------------------------------------------
  for (const svg of svgs) {
    const plot = svg.dataset.plot;
    const frame = svg.getBoundingClientRect();
    const labels = [...svg.querySelectorAll("text")].map((text) => ({ text: text.textContent, box: text.getBoundingClientRect() }));
    labels.forEach(({ text, box }, number) => {
      if (!(box.width > 0)) wrong.push(`${plot}: "${text}" is not shown`);
      if (box.left < frame.left || box.right > frame.right || box.top < frame.top || box.bottom > frame.bottom) wrong.push(`${plot}: "${text}" is cut off`);
      for (const other of labels.slice(number + 1)) {
        const across = Math.min(box.right, other.box.right) - Math.max(box.left, other.box.left);
        const down = Math.min(box.bottom, other.box.bottom) - Math.max(box.top, other.box.top);
        // Boxes hold room above and below the letters.
        if (across > 0.5 && down > 2) wrong.push(`${plot}: "${text}" and "${other.text}" overlap by ${across.toFixed(1)} × ${down.toFixed(1)}`);
      }
    });

    // --- Series ---------------------------------------------------------------------------------
    const shown = (name) => name.replace(/\p{Cc}/gu, "\ufffd");
    for (const row of measured.rows) {
      const groups = [...svg.querySelectorAll("[data-series]")].filter((group) => group.dataset.series === shown(row.runtime.name));
      if (groups.length === 0) wrong.push(`${plot}: no series ${row.runtime.name}`);
      const drawn = groups.flatMap((group) => [...group.querySelectorAll("rect, path, circle, text")]);
      if (drawn.length === 0 && !(row.points?.length < 2)) wrong.push(`${plot}: nothing of ${row.runtime.name}`);
      for (const shape of drawn) {
        const box = shape.getBoundingClientRect();
        if (box.left < frame.left || box.right > frame.right || box.top < frame.top || box.bottom > frame.bottom) wrong.push(`${plot}: ${shape.outerHTML} is cut off`);
      }
      const runs = (row.runs ?? []).filter((run) => run.purpose === "sample" && run.failure === null && run.milestones[plot] != null);
      const dots = groups.flatMap((group) => [...group.querySelectorAll("circle")]);
      if ((plot === "exit" || plot === "output") && dots.length !== runs.length) wrong.push(`${plot}: ${dots.length} dots for ${runs.length} runs of ${row.runtime.name}`);
    }
    const emulated = [...svg.querySelectorAll("text")].some((text) => text.textContent.startsWith("EMULATED HOST"));
    if (emulated !== (record.host.emulated !== null)) wrong.push(`${plot}: the label of an emulated host`);
  }

  // --- The rest ---------------------------------------------------------------------------------
  if (svgs.length !== (record.measured.startup ? (svgs.some((svg) => svg.dataset.plot === "output") ? 5 : 4) : 3)) wrong.push(`${svgs.length} plots`);
  if (root.scrollWidth > innerWidth) wrong.push(`the page is ${root.scrollWidth} wide on a screen of ${innerWidth}`);
  if (innerWidth >= 1200) {
    for (const box of document.querySelectorAll(".wide, figure")) {
      if (box.scrollWidth > box.clientWidth) wrong.push(`${box.tagName} is ${box.scrollWidth} wide, and has room for ${box.clientWidth}`);
    }
  }
  const download = document.getElementById("download");
  if (download.hidden || !download.href.startsWith("blob:") || !download.download.endsWith(".json")) wrong.push("the record cannot be saved");
  if (performance.getEntriesByType("resource").length > 0) wrong.push("something was loaded");
  if ("owned" in window) wrong.push("a name was executed");

  const result = document.createElement("output");
  result.id = "wrong";
  result.textContent = `${svgs.length} plots, ${texts} texts, ${root.scrollHeight} high, ${wrong.length} wrong\n${wrong.join("\n")}`;
  document.body.append(result);
});
