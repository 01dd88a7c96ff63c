// TinCanJS, which most published courses carry, against a learning record store.
// Usage: node tincan.cjs ENDPOINT KEY; prints one line per check, exit status 1 if one fails.
const assert = require("node:assert/strict");
const { randomUUID } = require("node:crypto");
const TinCan = require("tincanjs");

const [endpoint, key] = process.argv.slice(2);
const lrs = new TinCan.LRS({ endpoint: `${endpoint}/`, username: "course", password: key, allowFail: false });
const agent = new TinCan.Agent({ mbox: `mailto:${randomUUID()}@example.org` });
const activity = new TinCan.Activity({ id: `https://example.org/course/${randomUUID()}` });
const verb = new TinCan.Verb({ id: "http://adlnet.gov/expapi/verbs/launched" });
const statement = () => new TinCan.Statement({ actor: agent, verb, target: activity });

const call = (name, ...given) =>
  new Promise((resolve, reject) => {
    const config = given.pop();
    lrs[name](...given, {
      ...config,
      callback: (error, found) => (error === null ? resolve(found) : reject(new Error(`${name}: ${error}`))),
    });
  });

const checks = {
  "about": async () => assert.ok((await call("about", {})).version.includes("1.0.3")),
  "statements": async () => {
    const sent = [statement(), statement()];
    await call("saveStatement", sent[0], {});
    await call("saveStatements", [sent[1]], {});
    const found = await call("retrieveStatement", sent[0].id, { params: {} });
    assert.equal(found.actor.mbox, agent.mbox);
    const page = await call("queryStatements", { params: { agent, verb, activity, limit: 1 } });
    assert.equal(page.statements[0].id, sent[1].id);
    const next = await call("moreStatements", { url: page.more });
    assert.equal(next.statements[0].id, sent[0].id);
  },
  "a file": async () => {
    const sent = statement();
    const content = TinCan.Utils.stringToArrayBuffer("contents \u00e9");
    sent.attachments = [new TinCan.Attachment({
      display: { en: "A" }, usageType: "https://example.org/u", contentType: "text/plain", content,
    })];
    await call("saveStatement", sent, {});
    const found = await call("retrieveStatement", sent.id, { params: { attachments: true } });
    assert.equal(found.attachments[0].getContentAsString(), "contents \u00e9");
  },
  "states": async () => {
    const at = { agent, activity };
    await call("saveState", "cp", "page 1", { ...at, contentType: "text/plain" });
    const state = await call("retrieveState", "cp", at);
    assert.equal(state.contents, "page 1");
    await call("saveState", "cp", "page 2", { ...at, lastSHA1: state.etag.replaceAll('"', "") });
    assert.deepEqual(await call("retrieveStateIds", at), ["cp"]);
    await call("dropState", "cp", at);
    assert.equal(await call("retrieveState", "cp", at), null);
  },
  "profiles": async () => {
    await call("saveActivityProfile", "p", "{}", { activity, contentType: "application/json" });
    assert.deepEqual((await call("retrieveActivityProfile", "p", { activity })).contents, {});
    await call("dropActivityProfile", "p", { activity });
    await call("saveAgentProfile", "p", "x", { agent, contentType: "text/plain" });
    assert.equal((await call("retrieveAgentProfile", "p", { agent })).contents, "x");
    await call("dropAgentProfile", "p", { agent });
  },
  "an activity": async () =>
    assert.equal((await call("retrieveActivity", activity.id, {})).id, activity.id),
};

(async () => {
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check();
      console.log(`ok      TinCanJS: ${name}`);
    } catch (error) {
      process.exitCode = 1;
      console.log(`FAILED  TinCanJS: ${name}: ${error.stack}`);
    }
  }
})();
