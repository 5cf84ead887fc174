"""How Alembic runs: in the transaction that it is given, so that a schema is brought up to date whole or not at all."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], render_as_batch=True)
context.run_migrations()
