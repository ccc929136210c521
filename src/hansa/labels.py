"""Versioned domain-separation labels of every hash, key derivation and signature in hansa.

A label is used for one purpose only. A change of what is hashed under a label needs a new version of it.
"""

STUDY_ID = b"hansa/v1/study-id"
SIGNATURE = b"hansa/v1/signature/"  # followed by the message type
COHORT = b"hansa/v1/secure-agg/cohort"
PAIR_MASK = b"hansa/v1/secure-agg/pair-mask"
MASK_REPLACEMENT = b"hansa/v1/secure-agg/mask-replacement"
CIPHERTEXT = b"hansa/v1/secure-agg/ciphertext"
CIPHERTEXT_LIST = b"hansa/v1/secure-agg/ciphertext-list"
HE_KEY_ID = b"hansa/v1/secure-agg/he-key-id"
ROSTER = b"hansa/v1/secure-agg/roster"
SIGNED_MESSAGE = b"hansa/v1/secure-agg/signed-message"
TRANSCRIPT = b"hansa/v1/secure-agg/transcript"
SUPPORT = b"hansa/v1/codec/support"
MODEL_STATE = b"hansa/v1/model-state"
STATE_TAG = b"hansa/v1/state-tag"
ADAPTER_FACTOR = b"hansa/v1/models/adapter-factor"
LEDGER_ENTRY = b"hansa/v1/privacy/ledger-entry"
DEMO_DRAW = b"hansa/v1/demo/draw/"  # followed by the purpose and the seed
