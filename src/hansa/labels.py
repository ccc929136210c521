"""Versioned domain-separation labels of every hash, key derivation and signature in hansa.

A label is used for one purpose only. A change of what is hashed under a label needs a new version of it.
"""

STUDY_ID = b"hansa/v1/study-id"
SIGNATURE = b"hansa/v1/signature/"  # followed by the message type
COHORT = b"hansa/v2/secure-agg/cohort"
PAIR_MASK = b"hansa/v1/secure-agg/pair-mask"
MASK_REPLACEMENT = b"hansa/v1/secure-agg/mask-replacement"
CIPHERTEXT = b"hansa/v1/secure-agg/ciphertext"
CIPHERTEXT_LIST = b"hansa/v1/secure-agg/ciphertext-list"
HE_KEY_ID = b"hansa/v2/secure-agg/he-key-id"
ROSTER = b"hansa/v2/secure-agg/roster"
SIGNED_MESSAGE = b"hansa/v1/secure-agg/signed-message"
TRANSCRIPT = b"hansa/v2/secure-agg/transcript"  # an HMAC under the group key since v2
VOID_LINK = b"hansa/v1/secure-agg/void-link"
PARAMETERS = b"hansa/v1/secure-agg/parameters"
MANIFEST = b"hansa/v2/secure-agg/manifest"  # covers the pinned authority since v2
AUTHORITY = b"hansa/v1/secure-agg/authority"
GROUP_COMMITMENT = b"hansa/v1/secure-agg/group-commitment"
DEAL = b"hansa/v1/secure-agg/deal"
HE_KEY_SEAL = b"hansa/v1/secure-agg/he-key-seal"
SHARE_CHANNEL = b"hansa/v1/secure-agg/share-channel"
SHARE_SEAL = b"hansa/v1/secure-agg/share-seal"
SHARE_BLOB = b"hansa/v1/secure-agg/share-blob"
SEED_SHARE = b"hansa/v1/secure-agg/seed-share"
MASK_SHARE = b"hansa/v1/secure-agg/mask-share"
SHARE_LEAF = b"hansa/v1/secure-agg/share-leaf"
SHARE_NODE = b"hansa/v1/secure-agg/share-node"
SEED_COMMITMENT = b"hansa/v1/secure-agg/seed-commitment"
SELF_MASK = b"hansa/v1/secure-agg/self-mask"
RELEASE_SEAL = b"hansa/v1/secure-agg/release-seal"
TAG_COEFFICIENTS = b"hansa/v1/secure-agg/tag-coefficients"
TAG_OFFSETS = b"hansa/v1/secure-agg/tag-offsets"
SUPPORT = b"hansa/v1/codec/support"
MODEL_STATE = b"hansa/v1/model-state"
STATE_TAG = b"hansa/v1/state-tag"
ADAPTER_FACTOR = b"hansa/v1/models/adapter-factor"
DATA_COMMITMENT = b"hansa/v1/privacy/data-commitment"
DATA_ROW = b"hansa/v1/privacy/data-row"
RECIPE = b"hansa/v1/models/recipe"
RECIPE_DRAW = b"hansa/v1/models/recipe-draw/"  # followed by the purpose and the seed
LEDGER_ENTRY = b"hansa/v1/privacy/ledger-entry"
CODE = b"hansa/v1/privacy/code"
STORE_KEY = b"hansa/v1/participant/store-key"
STORE_SLOT_KEY = b"hansa/v1/participant/store-slot-key"
STORE_RECORD = b"hansa/v1/participant/store-record"
DEMO_DRAW = b"hansa/v1/demo/draw/"  # followed by the purpose and the seed
