"""Rustici's tincan, the client of Python programs, against a learning record store.

Usage: python tincan_client.py ENDPOINT KEY; one line per check, exit status 1 if one fails.
"""

import sys
import traceback
import uuid

from tincan import Activity, Agent, RemoteLRS, Statement, Verb


def main(endpoint: str, key: str) -> int:
    """Run the checks; how many failed."""
    lrs = RemoteLRS(endpoint=endpoint + "/", username="program", password=key)
    agent = Agent(mbox=f"mailto:{uuid.uuid4()}@example.org")
    activity = Activity(id=f"https://example.org/course/{uuid.uuid4()}")
    verb = Verb(id="http://adlnet.gov/expapi/verbs/launched")

    def good(answer):
        if not answer.success:
            raise AssertionError(f"{answer.response.status}: {answer.data}")
        return answer.content

    def about():
        assert "1.0.3" in good(lrs.about()).version

    def statements():
        sent = [Statement(actor=agent, verb=verb, object=activity) for _ in range(2)]
        first = good(lrs.save_statement(sent[0]))
        good(lrs.save_statements(sent[1:]))
        assert good(lrs.retrieve_statement(first.id)).actor.mbox == agent.mbox
        page = good(lrs.query_statements({"agent": agent, "limit": 1}))
        assert len(page.statements) == 1
        assert good(lrs.more_statements(page)).statements[0].id == first.id

    def states():
        from tincan import StateDocument

        document = StateDocument(
            activity=activity, agent=agent, id="cp", content=bytearray(b"page 1")
        )
        good(lrs.save_state(document))
        found = good(lrs.retrieve_state(activity, agent, "cp"))
        assert bytes(found.content) == b"page 1"
        assert good(lrs.retrieve_state_ids(activity, agent)) == ["cp"]
        good(lrs.delete_state(found))
        good(lrs.clear_state(activity, agent))

    failed = 0
    for check in (about, statements, states):
        try:
            check()
            print(f"ok      tincan (Python): {check.__name__}")
        except Exception:
            failed += 1
            print(f"FAILED  tincan (Python): {check.__name__}: {traceback.format_exc()}")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
