"""Says that published rows changed, to whoever shows them."""

from sqlalchemy import Connection, text

from theon.outcomes.columns import CHANNEL

__all__ = ["CHANNEL", "announce"]


def announce(conn: Connection, slug: str) -> None:
    """Tell the listeners of `CHANNEL`, once this transaction is committed.

    Args:
        conn: the transaction that changes rows of a metric.
        slug: of the campus whose rows they are.
    """
    conn.execute(text("SELECT pg_notify(:channel, :slug)"), {"channel": CHANNEL, "slug": slug})
