"""PostgreSQL: embedded server, roles, scope, migrations, bulk loads."""
