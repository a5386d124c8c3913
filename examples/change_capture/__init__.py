"""Change data capture: what happens to tables of a PostgreSQL becomes events, each once, in order, with a Pharaoh id.

PostgreSQL keeps a *slot*: the place in its log up to which changes were taken. Here they are read with
`pg_logical_slot_peek_binary_changes`, which does not move the slot, in the format of its own logical replication
(pgoutput); whole transactions, in the order of their commits. Every changed row gets an id by `next_event_id`, and goes
into the *sink*, an SQLite file here. Exactly once, whoever is killed at whatever instruction, rests on three rules:

1. The sink's position (the log's place after the last transaction written) changes in one transaction with the events.
2. A transaction at or below the sink's position is passed over: it has been written.
3. The slot is moved only after the sink is durable, and never beyond its position.

A crash before the sink's commit: nothing was written, the slot gives the changes again, they get other ids; the ids of
the first attempt were never seen. A crash after it, or one of PostgreSQL, which may forget that the slot was moved: the
slot gives them again, and rule 2 passes them over. A slot that is gone, or further than the sink (which was restored
from a backup, say), means lost changes, and is refused.

The ids rise in commit order, over all restarts and whichever coordinator of Pharaoh answers, because each is asked for
`after` the last one in the sink. Each table is a key of its own, so that the load of many tables is spread. An id tells
when the change was captured, and readers may take `id > last seen` as their own position.

Not here: the rows that a table had before its slot was made, and columns' types: values are PostgreSQL's text. A large
value that an update leaves alone is not in its event: see `capture.replay`.
"""
