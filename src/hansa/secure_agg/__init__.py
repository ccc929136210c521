"""Masking, packing and homomorphic encryption of updates, as I/O-free state machines.

From the bottom: `derivation` (hashes, keys, key streams), `parameters` (constants, lanes, terms), `packing`,
`identity`, `shamir`, `sealing`, `ciphertext_format` and `bfv`, `messages` (signed CBOR), `cohort` (the hashes that
tie a round together), `masks`, `tag`, `store` (what must survive a crash). On these stand the participant's
machines, `epoch` and `participant` (with `packages`, `attempt`, `uploading`, `unmasking`), and the coordinator's,
`relay` and `aggregator`. `codec` turns an update into small integers and back.

docs/protocol.md numbers the steps as the code does. The composition is argued and tested, not formally proven.
"""
