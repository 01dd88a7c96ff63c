// @xapi/xapi, which authoring tools and web pages use, against a learning record store.
// Usage: node modern.cjs ENDPOINT KEY VERSION; prints one line per check, exit status 1 if one fails.
const assert = require("node:assert/strict");
const { randomUUID, createHash } = require("node:crypto");
const XAPI = require("@xapi/xapi").default ?? require("@xapi/xapi");

const [endpoint, key, version] = process.argv.slice(2);
const settings = { endpoint, auth: XAPI.toBasicAuth("tool", key), version };
const xapi = new XAPI(settings);
// With its other adapter it does not tell the status of an answer, with this one it cannot send files.
const fetching = new XAPI({ ...settings, adapter: "fetch" });
const agent = { objectType: "Agent", mbox: `mailto:${randomUUID()}@example.org` };
const activityId = `https://example.org/activity/${randomUUID()}`;
const verb = { id: "http://adlnet.gov/expapi/verbs/experienced", display: { en: "experienced" } };
const object = { id: activityId, definition: { name: { en: "A page", de: "Eine Seite" } } };
const statement = (more = {}) => ({ id: randomUUID(), actor: agent, verb, object, ...more });

const status = async (wanted, promise) => {
  const found = await promise.then((answer) => answer.status, (error) => error.status ?? error.response?.status);
  assert.equal(found, wanted);
};

const checks = {
  "about names the version": async () => {
    const { data } = await xapi.getAbout();
    assert.ok(data.version.includes(version));
  },
  "statements are sent, found and paged": async () => {
    const sent = [statement(), statement(), statement()];
    const { data: ids } = await xapi.sendStatements({ statements: sent });
    assert.deepEqual(ids, sent.map((one) => one.id));
    let { data: page } = await xapi.getStatements({ agent, limit: 2, ascending: true });
    const found = page.statements.map((one) => one.id);
    while (page.more) {
      page = (await xapi.getMoreStatements({ more: page.more })).data;
      found.push(...page.statements.map((one) => one.id));
    }
    assert.deepEqual(found, ids);
    const { data: one } = await xapi.getStatement({ statementId: ids[0] });
    assert.deepEqual(one.actor, agent);
    assert.ok(one.stored && one.authority);
    const { data: filtered } = await xapi.getStatements({ activity: activityId, verb: verb.id, related_activities: true });
    assert.equal(filtered.statements.length, 3);
  },
  "a statement is voided": async () => {
    const sent = statement();
    await xapi.sendStatement({ statement: sent });
    await xapi.voidStatement({ actor: agent, statementId: sent.id });
    await status(404, xapi.getStatement({ statementId: sent.id }));
    const { data } = await xapi.getVoidedStatement({ voidedStatementId: sent.id });
    assert.equal(data.id, sent.id);
  },
  "an id is used once": async () => {
    const sent = statement();
    await xapi.sendStatement({ statement: sent });
    await status(200, xapi.sendStatement({ statement: sent }));
    await status(409, xapi.sendStatement({ statement: { ...sent, verb: { id: "https://example.org/v" } } }));
    await status(400, xapi.sendStatement({ statement: statement({ verb: { id: "no iri" } }) }));
  },
  "a file goes and comes with its statement": async () => {
    const content = new TextEncoder().encode("a report").buffer;
    const attachment = {
      usageType: "https://example.org/report", display: { en: "A report" }, contentType: "text/plain",
      length: content.byteLength,
      sha2: createHash("sha256").update(Buffer.from(content)).digest("hex"),
    };
    const sent = statement({ attachments: [attachment] });
    const { data: ids } = await fetching.sendStatement({ statement: sent, attachments: [content] });
    assert.deepEqual(ids, [sent.id]);
    const { data: parts } = await fetching.getStatement({ statementId: sent.id, attachments: true });
    assert.equal(parts[0].id, sent.id);
    assert.equal(typeof parts[1] === "string" ? parts[1] : Buffer.from(parts[1]).toString(), "a report");
  },
  "an activity and an agent are known": async () => {
    const { data: activity } = await xapi.getActivity({ activityId });
    assert.deepEqual(activity.definition.name, object.definition.name);
    const { data: person } = await xapi.getAgent({ agent });
    assert.equal(person.objectType, "Person");
    assert.deepEqual(person.mbox, [agent.mbox]);
  },
  "states are kept": async () => {
    const at = { agent, activityId, stateId: "bookmark" };
    await xapi.createState({ ...at, state: { page: 1 } });
    await xapi.createState({ ...at, state: { seen: true } });
    const { data, headers } = await xapi.getState(at);
    assert.deepEqual(data, { page: 1, seen: true });
    await status(204, xapi.setState({ ...at, state: { page: 2 }, etag: headers.etag, matchHeader: "If-Match" }));
    await status(412, xapi.setState({ ...at, state: { page: 3 }, etag: headers.etag, matchHeader: "If-Match" }));
    assert.deepEqual((await xapi.getStates({ agent, activityId })).data, ["bookmark"]);
    await xapi.deleteState(at);
    await status(404, xapi.getState(at));
    await xapi.createState({ ...at, state: { page: 1 } });
    await xapi.deleteStates({ agent, activityId });
    assert.deepEqual((await xapi.getStates({ agent, activityId })).data, []);
  },
  "profiles are kept": async () => {
    for (const [kind, at] of [["Activity", { activityId }], ["Agent", { agent }]]) {
      const where = { ...at, profileId: "settings" };
      await xapi[`create${kind}Profile`]({ ...where, profile: { theme: "dark" } });
      const { data, headers } = await xapi[`get${kind}Profile`](where);
      assert.deepEqual(data, { theme: "dark" });
      const changed = { ...where, profile: { theme: "light" }, etag: headers.etag, matchHeader: "If-Match" };
      await status(204, xapi[`set${kind}Profile`](changed));
      await status(412, xapi[`set${kind}Profile`](changed));
      assert.deepEqual((await xapi[`get${kind}Profiles`](at)).data, ["settings"]);
      const now = (await xapi[`get${kind}Profile`](where)).headers.etag;
      await status(204, xapi[`delete${kind}Profile`]({ ...where, etag: now }));
      await status(404, xapi[`get${kind}Profile`](where));
    }
  },
};

(async () => {
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check();
      console.log(`ok      @xapi/xapi ${version}: ${name}`);
    } catch (error) {
      process.exitCode = 1;
      console.log(`FAILED  @xapi/xapi ${version}: ${name}: ${error.stack ?? JSON.stringify(error)}`);
    }
  }
})();
