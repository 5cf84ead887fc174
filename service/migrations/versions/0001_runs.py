"""Projects, runs, baselines, comparisons and keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """From nothing."""
    op.create_table(
        "answer",
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("holder", "key"),
    )
    op.create_index(op.f("ix_answer_at"), "answer", ["at"], unique=False)
    op.create_table(
        "api_key",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("expires", sa.Text(), nullable=True),
        sa.Column("revoked", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hash", name=op.f("uq_api_key_hash")),
    )
    op.create_table(
        "project",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", name=op.f("uq_project_name")),
    )
    op.create_table(
        "branch",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("started_from", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_branch_project_id_name")),
    )
    op.create_table(
        "test_case",
        sa.Column("id", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_test_case_project_id_name")),
    )
    op.create_table(
        "run",
        sa.Column("seq", _ID, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("branch_id", _ID, nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("testbed", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("cases", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["branch_id"], ["branch.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id", name=op.f("uq_run_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_run_branch_id_seq"), "run", ["branch_id", "seq"], unique=False)
    op.create_index(op.f("ix_run_project_id_seq"), "run", ["project_id", "seq"], unique=False)
    op.create_table(
        "comparison",
        sa.Column("seq", _ID, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("branch_id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("run_seq", _ID, nullable=False),
        sa.Column("baseline_seq", _ID, nullable=True),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["baseline_seq"], ["run.seq"], ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["branch_id"], ["branch.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_seq"], ["run.seq"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id", name=op.f("uq_comparison_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_comparison_baseline_seq"), "comparison", ["baseline_seq"], unique=False)
    op.create_index(op.f("ix_comparison_project_id_branch_id_seq"), "comparison", ["project_id", "branch_id", "seq"], unique=False)
    op.create_index(op.f("ix_comparison_run_seq"), "comparison", ["run_seq"], unique=False)
    op.create_table(
        "move",
        sa.Column("seq", _ID, nullable=False),
        sa.Column("project_id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("branch_id", _ID, nullable=False),
        sa.Column("run_seq", _ID, nullable=False),
        sa.Column("was_seq", _ID, nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["branch_id"], ["branch.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["run_seq"],
            ["run.seq"],
        ),
        sa.ForeignKeyConstraint(
            ["was_seq"],
            ["run.seq"],
        ),
        sa.PrimaryKeyConstraint("seq"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_move_project_id_name_branch_id_seq"), "move", ["project_id", "name", "branch_id", "seq"], unique=False)
    op.create_index(op.f("ix_move_run_seq"), "move", ["run_seq"], unique=False)
    op.create_index(op.f("ix_move_was_seq"), "move", ["was_seq"], unique=False)
    op.create_table(
        "result",
        sa.Column("case_id", _ID, nullable=False),
        sa.Column("run_seq", _ID, nullable=False),
        sa.Column("max_ulp", sa.Text(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["case_id"], ["test_case.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_seq"], ["run.seq"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("case_id", "run_seq"),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_result_run_seq"), "result", ["run_seq"], unique=False)
