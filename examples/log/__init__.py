"""A partitioned log in files, with exactly one copy of every record, and Pharaoh as the only thing that counts.

Everything is a file whose name is a number. It is written whole, synced, and put in its place by link(2), which fails
when the place is taken. There are no locks: a process that is paused holds up nobody, and when it goes on it can
overwrite nothing.

    LOG/log/1                   the log's own id and its number of partitions
    LOG/producers/NAME/N        the journal of a producer: N is the sequence of a batch, or the start of a session
    LOG/partitions/P/OFFSET     a batch of that journal (the same file), under the offset of its first record
    LOG/groups/NAME/N           a consumer group's states: generation, members, committed offsets
    LOG/alive/NAME@SESSION      touched by a member that lives; a hint, on which nothing rests

How a batch gets in
1. The producer puts it in its journal, at the next number.
2. `assign_offset` with the token (session, number, producer's name): from now on the batch is in the log.
3. The batch is linked to its offset, where consumers find it. Only then the next one is begun.
Whoever finds the newest batch of a journal without an offset does 2 and 3 again, as often as need be: the token brings
the same offset, and the link is there already or is made. So a successor finishes what a dead producer began, and so
does a consumer that waits in vain at an offset; no offset stays empty for good.

Why no paused process can do harm
- A producer begins by putting its new session (`create_session`) at the next number of the journal. Its predecessor
  then finds the place of its own next batch taken, and stops. What it put there before is finished by its successor.
- Once the successor has counted in a partition, Pharaoh refuses the predecessor's tokens there (FENCED). That alone
  would not do: an offset assigned just before would stay empty, if the journal did not tell the successor of its batch.
- A state of a group follows from the one before it: it can be put only by a process that has seen that one. A commit
  keeps the generation that the member is of, so after `join_group` has brought a newer one no older commit fits.
- A process that takes the name of a member has a newer session, so Pharaoh refuses the older one's `join_group`.

Limits, for the sake of brevity: a file for each batch and each commit, and none is ever deleted. A batch whose offset
nobody asked for again before 64 newer sessions counted in its partition can no longer be told (SESSION_FORGOTTEN).
"""
