// Makes the pages about jobs live. Each page works without it.
"use strict";

// -- live: what has data-live="<seconds>" is replaced by itself, read anew ------------------

const live = { failures: 0, waitUntil: 0, pressed: false, busy: false, lastAnswer: new Date() };
const readAt = new WeakMap();
const address = document.getElementById("content").dataset.liveUrl;
const dialog = document.getElementById("confirm");

function isEdited(field) {
  if (field.type === "hidden" || field.type === "submit") return false;
  if (field.type === "checkbox" || field.type === "radio") return field.checked !== field.defaultChecked;
  if (!field.options) return field.value !== field.defaultValue;
  const chosen = [...field.options].findIndex((option) => option.defaultSelected);
  return field.selectedIndex !== Math.max(0, chosen);
}

function rests(element) {
  return live.pressed || dialog.open || element.contains(document.activeElement) ||
    element.querySelector("input[type=checkbox]:checked") !== null ||
    [...element.querySelectorAll("input, select, textarea")].some(isEdited);
}

function keepAsItWas(before, after) {
  for (const old of before.querySelectorAll("details[id], .scroll[id]")) {
    const next = after.querySelector("#" + CSS.escape(old.id));
    if (!next) continue;
    if (old.open) next.open = true;
    if (old.scrollLeft) requestAnimationFrame(() => { next.scrollLeft = old.scrollLeft; });
  }
}

function say(words) {
  const note = document.querySelector("[data-not-live]");
  if (note.textContent !== words) note.textContent = words;
  note.hidden = words === "";
}

async function refresh(elements) {
  live.busy = true;
  try {
    const answer = await fetch(address, {
      headers: { "X-Live": "1" }, cache: "no-store", signal: AbortSignal.timeout(20000),
    });
    if (!answer.ok || answer.redirected) throw new Error("status " + answer.status);
    const read = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const element of elements) {
      readAt.set(element, Date.now());
      const next = read.getElementById(element.id);
      if (!next || !element.isConnected || rests(element)) continue;
      keepAsItWas(element, next);
      element.replaceWith(document.adoptNode(next));
      readAt.set(next, Date.now());
    }
    live.failures = 0;
    live.lastAnswer = new Date();
    say("");
  } catch {
    live.failures += 1;
    live.waitUntil = Date.now() + Math.min(60, 2 ** live.failures) * 1000;
    say("Not live: no answer since " + live.lastAnswer.toLocaleTimeString() + ".");
  } finally {
    live.busy = false;
  }
}

function tick() {
  if (document.hidden || live.busy || Date.now() < live.waitUntil) return;
  const due = [...document.querySelectorAll("[data-live][id]")].filter((element) => {
    if (!readAt.has(element)) readAt.set(element, Date.now());
    return Date.now() - readAt.get(element) >= Number(element.dataset.live) * 1000 &&
      !rests(element);
  });
  if (due.length > 0) refresh(due);
}

document.addEventListener("pointerdown", () => { live.pressed = true; });
for (const name of ["pointerup", "pointercancel", "dragend", "blur"]) {
  window.addEventListener(name, () => { live.pressed = false; });
}
if (address) setInterval(tick, 250);

// -- confirm: a form or button with data-confirm asks first ----------------------------------

let asked = null;

document.addEventListener("submit", (event) => {
  const form = event.target;
  const words = event.submitter?.dataset.confirm ?? form.dataset.confirm;
  if (!words || form === asked?.confirmed) return;
  event.preventDefault();
  asked = { form, submitter: event.submitter };
  document.getElementById("confirm-words").textContent = words;
  dialog.showModal();
});

dialog.addEventListener("click", (event) => {
  const answer = event.target.dataset.answer;
  if (!answer) return;
  dialog.close();
  if (answer !== "yes") return;
  const { form, submitter } = asked;
  asked = { confirmed: form };
  form.requestSubmit(submitter);
  asked = null;
});

// -- tick all: data-tick-all="<name>" ticks the boxes of that name in its form ----------------

document.documentElement.classList.add("scripted");

function boxesOf(all) {
  const form = all.form ?? document;
  const boxes = form.elements ? [...form.elements] : [...form.querySelectorAll("input")];
  return boxes.filter((box) => box.name === all.dataset.tickAll);
}

document.addEventListener("change", (event) => {
  if (event.target.dataset?.tickAll) {
    for (const box of boxesOf(event.target)) box.checked = event.target.checked;
  }
});

// -- suggestions: the words of the list, put behind what was typed before the last word --------

for (const input of document.querySelectorAll("input[data-tokens][list]")) {
  const words = [...input.list.options].map((option) => option.value);
  input.addEventListener("input", () => {
    const [, before, last] = /^(.*\s)?(\S*)$/s.exec(input.value) ?? [null, "", input.value];
    const fitting = words.filter((word) => word.startsWith(last) && word !== last).slice(0, 30);
    input.list.replaceChildren(...fitting.map((word) => {
      const option = document.createElement("option");
      option.value = (before ?? "") + word;
      return option;
    }));
  });
}

// -- forms: data-follows="<id of a select>" shows what belongs to the chosen value ------------

for (const part of document.querySelectorAll("[data-follows]")) {
  const select = document.getElementById(part.dataset.follows);
  const show = () => { part.hidden = part.dataset.value !== select.value; };
  select.addEventListener("change", show);
  show();
}
