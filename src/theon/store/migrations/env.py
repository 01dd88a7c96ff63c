"""Run by Alembic: migrates over the connection that `theon.store.schema` gives it."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="schema_version",
    version_table_schema="theon",
)
with context.begin_transaction():
    context.run_migrations()
