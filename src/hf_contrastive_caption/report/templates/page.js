"use strict";
(() => {
  const grid = document.getElementById("grid");
  const cards = [...grid.children];
  const search = document.getElementById("search");
  const sort = document.getElementById("sort");
  const count = document.getElementById("count");
  const value = (card, name) => Number(card.dataset[name]);
  const keys = {
    number: (card) => value(card, "number"),
    gain: (card) => -value(card, "gain"),
    loss: (card) => value(card, "gain"),
    invented: (card) => -value(card, "invented"),
    ratio: (card) => -Math.abs(value(card, "ratio")),
  };
  const order = () => {
    const key = keys[sort.value];
    grid.append(...cards.sort((a, b) => key(a) - key(b) || value(a, "number") - value(b, "number")));
  };
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      card.hidden = !words.every((word) => card.dataset.text.includes(word));
      shown += card.hidden ? 0 : 1;
    }
    count.textContent = `${shown} image${shown === 1 ? "" : "s"}`;
  };
  sort.addEventListener("change", order);
  search.addEventListener("input", filter);
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
  grid.addEventListener("toggle", (event) => {
    if (!event.target.open) return;
    for (const link of event.target.querySelectorAll(".rivals a:not(:has(img))")) {
      const picture = document.querySelector(`${link.getAttribute("href")} img`).cloneNode();
      link.prepend(picture);
    }
  }, true);
  grid.addEventListener("click", (event) => {
    const link = event.target.closest(".rivals a");
    const card = link && document.querySelector(link.getAttribute("href"));
    if (card && card.hidden) {
      search.value = "";
      filter();
    }
  });
  order();
  filter();
})();
