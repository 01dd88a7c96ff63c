"""The canonical event: one row of the lake, whatever the source.

Ids are the source's own, as text, so that Moodle's numbers and another system's IRIs fit
the same column. Times are UTC with microseconds. A null means "the source does not say".
"""

from typing import Any

import pyarrow as pa

_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("campus", pa.string(), nullable=False),  # campus slug; partition
    pa.field("event_id", pa.string(), nullable=False),  # unique in a campus
    pa.field("source", pa.string(), nullable=False),  # 'moodle-log' or 'moodle-report'
    pa.field("occurred_at", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("user_id", pa.string()),
    pa.field("course_id", pa.string()),
    pa.field("event_name", pa.string(), nullable=False),  # '\\mod_forum\\event\\post_created'
    pa.field("component", pa.string()),
    pa.field("action", pa.string()),
    pa.field("target", pa.string()),
    pa.field("object_table", pa.string()),
    pa.field("object_id", pa.string()),
    pa.field("crud", pa.string()),
    pa.field("edulevel", pa.int16()),
    pa.field("context_id", pa.int64()),
    pa.field("context_level", pa.int32()),
    pa.field("context_instance_id", pa.int64()),
    pa.field("related_user_id", pa.string()),
    pa.field("real_user_id", pa.string()),  # who logged in as user_id; '?' = somebody, unknown
    pa.field("anonymous", pa.bool_()),
    pa.field("origin", pa.string()),
    pa.field("ip", pa.string()),
    pa.field("other", pa.string()),  # the source's own extra payload, untouched
]

EVENT_SCHEMA = pa.schema(_FIELDS)

PARTITION_COLUMNS = ["campus"]
SOURCE_MOODLE_LOG = "moodle-log"  # logstore file or database; event_id 'moodle:<log id>'
SOURCE_MOODLE_REPORT = "moodle-report"  # event_id 'report:<hash>:<n>' or '…@<course>'
SOURCE_MOODLE_DATABASE = "moodle-db"  # rows of outcomes; event_id 'moodle:<table>:<row id>:…'
SOURCE_RETRACTION = "retraction"  # of another event; event_id 'retraction:<its event_id>'
