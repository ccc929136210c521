"""Masking, packing and homomorphic encryption of updates, as I/O-free building blocks.

From the bottom: `parameters` (constants, lanes), `derivation` (hashes, keys, key streams), `packing`,
`identity`, `messages` (signed CBOR), `cohort` (what ties one round together), `agreement`, `masks`,
`ciphertext_format` and `bfv`, then the two state machines `participant` and `aggregator`; `codec` turns an
update into small integers and back.

This is the strict mode: every member of the roster must answer in every round, one upload each, pairwise
masks only. There is no self-mask, no recovery from a dropout, no tag that proves the aggregate to be the sum
of the uploads, and no state that survives a crash; a run that stops starts afresh with new keys.
"""
