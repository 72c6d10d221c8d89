// The search box of a site: sections that hold all of the words, those with the words in their headings first.
// SECTIONS: [address, title of the page, anchor, heading, text]. It needs no server, and asks for nothing.
{
  const MAX = 12;
  const nav = document.querySelector(".site-nav");
  const [box, list, count] = ["input", "ol", "output"].map(tag => nav.querySelector(tag));
  const part = (tag, text, attributes = {}) => Object.assign(document.createElement(tag), { textContent: text }, attributes);
  const sections = SECTIONS.map(section => ({ section, lower: section.map(text => text.toLowerCase()) }));

  const score = ([, title, , heading, text], words) => {
    let sum = 0;
    for (const word of words) {
      const times = Math.min(5, text.split(word).length - 1);
      const one = times + 10 * heading.includes(word) + 4 * title.includes(word);
      if (!one) return 0;
      sum += one;
    }
    return sum;
  };
  const excerpt = (text, word) => {
    const at = Math.max(0, text.toLowerCase().indexOf(word));
    const start = at < 60 ? 0 : text.indexOf(" ", at - 60) + 1;
    const line = part("p", start ? "… " : "");
    const end = text.length < at + 120 ? text.length : text.lastIndexOf(" ", at + 120);
    const shown = text.slice(start, end);
    for (const [i, piece] of shown.split(new RegExp(`(${word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")})`, "i")).entries())
      line.append(i % 2 ? part("mark", piece) : piece);
    if (end < text.length) line.append(" …");
    return line;
  };
  const search = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = (words.length ? sections : [])
      .map(({ section, lower }) => ({ section, score: score(lower, words) }))
      .filter(each => each.score)
      .sort((a, b) => b.score - a.score);
    list.replaceChildren(...found.slice(0, MAX).map(({ section: [address, title, anchor, heading, text] }) => {
      const link = part("a", heading === title ? title : `${title}: ${heading}`);
      link.href = `${nav.dataset.root}${address}#${encodeURIComponent(anchor)}`;
      const item = part("li", "");
      item.append(link, excerpt(text, words[0]));
      return item;
    }));
    const more = found.length > MAX ? `, the first ${MAX} shown` : "";
    count.textContent = words.length ? `${found.length || "no"} ${found.length === 1 ? "section" : "sections"}${more}` : "";
    nav.classList.toggle("searching", words.length > 0);
  };
  const close = () => { box.value = ""; search(); };
  box.addEventListener("input", search);
  list.addEventListener("click", event => event.target.closest("a") && setTimeout(close));
  nav.addEventListener("keydown", event => event.key === "Escape" && close());
  nav.querySelector("form").addEventListener("submit", event => {
    event.preventDefault();
    list.querySelector("a")?.click();
  });
}
