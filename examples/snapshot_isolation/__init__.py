"""Transactions over several SQLite files at once, with snapshot isolation, and Pharaoh as the timestamp oracle.

SQLite changes one file atomically, not several. This adds what is missing as Percolator does (Peng and Dabek, 2010): a
transaction takes a start timestamp, reads the snapshot of that moment, locks what it writes (the first key is the
*primary*), takes a commit timestamp, and is committed at the instant in which its primary's lock becomes a write
record. Whoever meets the lock of a process that died asks the primary what became of it, and rolls forward or back.

What is promised: every read of a transaction is of one snapshot; of two transactions that overlap and write the same
key one fails (no lost update); a transaction that begins after another's `commit` returned sees it. What snapshot
isolation does not promise: two transactions that read the same keys and write different ones both commit (write skew).

What it asks of the oracle: `begin_transaction` and `get_timestamp` with ONE key for the whole store, so that one
coordinator serves it and its timestamps are ordered in real time. When that coordinator is down the next one answers,
whose clock may be behind. Timestamps stay unique, but a commit could then get one below the start of a reader that has
already looked: half of it would show. So the store keeps a *mark*, the highest timestamp in use:

1. `begin`: start = a timestamp after the mark; the mark is raised to it BEFORE the first read.
2. `commit`: all locks are set, THEN the mark is read, and the commit timestamp is one after it.

If a reader looked at a key before the lock was set, its start was in the mark before the mark was read, so the commit
lies after that start and outside the reader's snapshot; otherwise it met the lock and waited for the outcome. That
holds whatever the oracle's coordinators do, as long as an answer is unique and exceeds `after`. The price is one small
write per begin and per commit.
"""
