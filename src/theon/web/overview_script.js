// Brings a part of the page to what the server says it is now, and touches nothing that is the
// same: what is open stays open, focus, selection and scroll stay where they are.
"use strict";

window.theonPatch = (id, html) => {
  const place = document.getElementById(id);
  if (!place) return;
  const wanted = document.createElement("template");
  wanted.innerHTML = html;

  const syncAttributes = (node, next) => {
    for (const { name } of [...node.attributes]) {
      // Whether details are open is the reader's choice.
      if (!next.hasAttribute(name) && !(name === "open" && node.tagName === "DETAILS")) {
        node.removeAttribute(name);
      }
    }
    for (const { name, value } of next.attributes) {
      if (node.getAttribute(name) !== value) node.setAttribute(name, value);
    }
  };

  const syncChildren = (node, next) => {
    const before = [...node.childNodes];
    const after = [...next.childNodes];
    after.forEach((child, place) => {
      const old = before[place];
      if (!old) {
        node.append(child);
      } else if (old.nodeName !== child.nodeName || (old.id ?? "") !== (child.id ?? "")) {
        old.replaceWith(child);
      } else if (old.nodeType === Node.ELEMENT_NODE) {
        syncAttributes(old, child);
        syncChildren(old, child);
      } else if (old.nodeValue !== child.nodeValue) {
        old.nodeValue = child.nodeValue;
      }
    });
    before.slice(after.length).forEach((old) => old.remove());
  };

  syncChildren(place, wanted.content);
};
