"""Every error that hansa raises on purpose, as one tree.

Error
├── UsageError                    exit 2    the command line asks for something that does not exist
│   └── ParticipantUnknown
├── ConfigurationError            exit 78   study.toml or another configuration is wrong
│   ├── StudyFileMissing, StudySyntaxError, UnknownKey, InvalidValue
│   ├── RecipeFileMissing, RecipeSyntaxError, RecipeChanged
│   ├── PrivacyTargetUnreachable, SpentFileMissing (exit 66)
│   ├── PolicyFileMissing, PolicySyntaxError
│   ├── DatasetFileMissing, UnknownDataset (exit 66), DatasetSyntaxError, DatasetExists
│   ├── QueryRefused, DriverMissing, PasswordFileMissing (exit 66)
│   ├── DatabaseUnusable, DatabaseNewer
│   ├── HomeMissing (exit 66), HomeExists, SettingsMissing (exit 66), SettingsSyntaxError, AuthorityAbsent
│   └── CohortTooSmall, CohortTooLarge
├── DataError                     exit 65   a participant's data does not fit the study
│   ├── DataFileMissing, ChecksumMismatch
│   ├── MissingColumn, DuplicateColumn, NonNumericColumn, InvalidLabel
│   ├── DataUnreadable, SchemaMismatch, DatabaseUnreachable (exit 69)
│   ├── RecipeDataInvalid
│   └── PartitionImpossible
├── CheckpointError               exit 65   a model's files are not what they should be; nothing was loaded
│   ├── CheckpointFileMissing (exit 66), PickleRefused, UnsafeCheckpointPath, CheckpointDamaged, ForeignConfig
│   └── CheckpointKeyMissing, UnexpectedCheckpointKey, CheckpointShapeMismatch, CheckpointTypeMismatch, BaseMismatch
├── AccountantsDisagree           exit 1    independent accountants give different epsilon for the same steps
├── AuditFailed                   exit 1    a measurement shows less privacy than the accounting claims
├── ExtraMissing                  exit 78   a package of an optional extra is not installed
├── PolicyRefusal                 exit 3    a participant refuses; nothing was spent
│   ├── BudgetExhausted, LedgerDamaged, LedgerMismatch, LayerMissing, UnknownStudy, CohortBelowPolicy
│   ├── ReleaseNotAgreed, TooManyRounds, ModelNotAllowed, SubmitterNotAllowed, CodeBundleRefused
│   └── DataAlreadyRegistered, TooLittleNoise
├── FederationError               exit 4    who somebody is, or what somebody signed, is not what it must be
│   ├── DocumentMissing (exit 66), DocumentMalformed (exit 65), DocumentRejected, FingerprintMismatch, NotAMember
│   ├── InvitationUnknown, InvitationExpired, InvitationUsed, InvitationExhausted, RequestForeign, ParticipantRevoked
│   ├── ParticipantExists, AlreadyApproved and AlreadyAnswered (exit 1), CommandStale (exit 1)
│   ├── StudyUnknown (exit 2), StudyExists, StudyAlreadyStarted
│   └── NothingRequested, EnrolmentPending and NotEnoughApprovals (exit 75)
├── TransportError                exit 69   what carries messages between the sides does not work
│   ├── PortInUse, SuperLinkFailed, CoordinatorUnreachable, FlowerRefused, PathRefused, AuthenticationFailed (exit 4)
│   ├── NodeNotAccepted, TooManyConnections and TooManyCalls (exit 75)
│   └── ForeignNode (exit 4), ClockSkew (exit 78)
├── ProtocolError                 exit 1    a peer or the coordinator does not keep to the protocol
│   ├── MalformedMessage, BadSignature, UnknownSender, DuplicateMember, CohortMismatch
│   ├── StaleRound, WrongSession, PackageReuse, OwnKeyMismatch, UploadReuse, OutOfOrder
│   ├── MalformedCiphertext, CiphertextSizeMismatch, AggregateHashMismatch, HeParameterMismatch
│   ├── AggregateRangeViolation, AggregateTagMismatch, ModelDivergence, TranscriptDivergence, KeyRotationDue
│   ├── MessageTooLarge, DuplicateMessage, WrongEpoch, HeKeyMismatch, StateRollback, LedgerRewound, AlreadyReleased
│   ├── PackageHashMismatch, ShareOpenFailed, ShareHashMismatch, ShareCommitmentMismatch, NotEnoughShares
│   ├── PackageLeavesMissing
│   ├── NotInCohort, RosterNotSubset, RosterTooSmall, RosterEquivocation, NotEnoughConsents
│   ├── OwnUploadMissing, OwnUploadAltered, GroupSealInvalid, UploadTooSlow, ResultExpired, CertificateRejected (exit 4)
│   ├── ParticipantLost
│   │   └── ParticipantRefused
│   └── UpdateShapeMismatch, UpdateNotFinite, UpdateOutOfRange
├── AuditError                    exit 1    an audit found something that does not hold
│   ├── LedgerNotVerified, HistoryForked, ProofInvalid, LedgerFileMissing (exit 66)
│   └── StatementInvalid, StatementMismatch, RecordsContradict, StatementIncomplete (exit 66)
├── ReportValueInvalid            exit 1    a result holds a value that no report may show
├── OutputNotWritable             exit 73   a report cannot be written where it was asked for
├── StateError                    exit 1    what a party must remember is damaged, in use or not writable
│   └── StoreDamaged, StoreInUse, StoreNotWritable and JournalNotWritable (exit 73), KeyFileUnsafe (exit 78),
│       │   JournalUnreachable (exit 69)
│       └── SpoolQuotaExceeded (exit 75)
├── TrainingDiverged              exit 1    a public training ended in numbers that are not finite
├── WorkerFailed                  exit 1    a worker process of the embedded consortium died
├── CheckTimedOut                 exit 1    a check of the doctor did not end in time
├── CommandFailed                 exit 1    a command of the demonstration's cluster failed
├── InternalFailure               exit 1    something failed that hansa did not foresee
└── Interrupted                   exit 130  stopped by the user

Each class has a stable `code`, an exit status and a default `hint` that says what to do next.
"""


class Error(Exception):
    """Base of all errors of hansa.

    Args:
        message: What is wrong, in lower case, with the offending value and the bound, without a full stop.
        hint: What to do about it; the class default where it is not given.

    Attributes:
        code: Stable name of the error for scripts and for `hansa explain`.
        exit_status: Exit status of a command that ends with this error.
    """

    code = "error"
    exit_status = 1
    default_hint = "run the command again with --verbose for the full traceback"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint


class UsageError(Error):
    """The command line asks for something that does not exist."""

    code = "usage"
    exit_status = 2
    default_hint = "see --help of the command"


class ParticipantUnknown(UsageError):
    """The consortium knows no participant of this name."""

    code = "participant_unknown"
    default_hint = "`hansa participant list` shows the names; `hansa participant invite NAME` adds one"


# -- configuration ---------------------------------------------------------------------------------------


class ConfigurationError(Error):
    """A configuration file or option is wrong."""

    code = "configuration"
    exit_status = 78
    default_hint = "correct the study file; `hansa study validate FILE` checks it"


class StudyFileMissing(ConfigurationError):
    """The study file does not exist or cannot be read."""

    code = "study_file_missing"
    default_hint = "give the path of a study.toml; examples/bank/study.toml is one"


class StudySyntaxError(ConfigurationError):
    """The study file is not TOML."""

    code = "study_syntax"


class UnknownKey(ConfigurationError):
    """The study file has a key that hansa does not know."""

    code = "unknown_key"


class InvalidValue(ConfigurationError):
    """A value in the study file has the wrong type or is out of its bounds."""

    code = "invalid_value"


class RecipeFileMissing(ConfigurationError):
    """The recipe of a training does not exist or cannot be read."""

    code = "recipe_file_missing"
    default_hint = "give the path of a recipe; examples/recipes/harbour.toml is one"


class RecipeSyntaxError(ConfigurationError):
    """The recipe of a training is not TOML."""

    code = "recipe_syntax"
    default_hint = "correct the recipe; docs/models.md lists its keys"


class RecipeChanged(ConfigurationError):
    """The output folder holds the phases of another recipe, or of the same one over other data."""

    code = "recipe_changed"
    default_hint = "choose another output folder, or restore recipe and data to go on"


class PrivacyTargetUnreachable(ConfigurationError):
    """No noise multiplier in the allowed range reaches the target (ε, δ)."""

    code = "privacy_target_unreachable"
    default_hint = "raise epsilon, or lower the rounds, the local steps or the sample rate"


class SpentFileMissing(ConfigurationError):
    """The ledger that a forecast starts from does not exist or cannot be read."""

    code = "spent_file_missing"
    exit_status = 66
    default_hint = "give the path of the data set's ledger, or leave --spent out for an unused data set"


class PolicyFileMissing(ConfigurationError):
    """The policy file does not exist or cannot be read."""

    code = "policy_file_missing"
    default_hint = "give the path of a policy.toml; examples/bank/policy.toml is one"


class PolicySyntaxError(ConfigurationError):
    """The policy file is not TOML, or says a key twice."""

    code = "policy_syntax"
    default_hint = "correct the policy file; `hansa policy check POLICY.toml STUDY.toml` reads it"


class DatasetFileMissing(ConfigurationError):
    """The participant's datasets.toml, or a file of a query or database URL that it names, cannot be read."""

    code = "dataset_file_missing"
    exit_status = 66
    default_hint = (
        "give the participant's home folder with --home; `hansa participant dataset add` makes the file in it"
    )


class UnknownDataset(ConfigurationError):
    """No data set of this name is described in datasets.toml."""

    code = "unknown_dataset"
    exit_status = 66
    default_hint = "`hansa participant dataset list` shows the names"


class DatasetSyntaxError(ConfigurationError):
    """The participant's datasets.toml is not TOML, or cannot be edited safely."""

    code = "dataset_syntax"
    default_hint = "correct datasets.toml; docs/data.md lists its keys"


class DatasetExists(ConfigurationError):
    """A data set of this name is described already."""

    code = "dataset_exists"
    default_hint = "choose another name for other data, or remove the description first; the ledger stays"


class QueryRefused(ConfigurationError):
    """A database query is not one SELECT, or the database cannot be held to reading only."""

    code = "query_refused"
    default_hint = "give one SELECT; hansa reads through a transaction that cannot write"


class DriverMissing(ConfigurationError):
    """The package that speaks to this kind of database is not installed."""

    code = "driver_missing"
    default_hint = (
        "install the driver that the URL names; for postgresql+psycopg: pip install 'hansa[postgresql]'"
    )


class PasswordFileMissing(ConfigurationError):
    """The file with a database's password cannot be read."""

    code = "password_file_missing"
    exit_status = 66
    default_hint = (
        "put the password alone in a file of mode 0600; password_file of datasets.toml names it, or"
        " database_password_file of coordinator.toml"
    )


class DatabaseUnusable(ConfigurationError):
    """The coordinator's database cannot be opened."""

    code = "database_unusable"
    default_hint = (
        "check the key `database` of coordinator.toml, and that the database runs and may be written"
    )


class DatabaseNewer(ConfigurationError):
    """A later version of hansa has used the coordinator's database."""

    code = "database_newer"
    default_hint = "run the version of hansa that used it last, or a newer one"


class HomeMissing(ConfigurationError):
    """The folder is not the home of a coordinator or of a participant."""

    code = "home_missing"
    exit_status = 66
    default_hint = (
        "give the folder with --home; `hansa consortium init` and `hansa participant join` make one"
    )


class HomeExists(ConfigurationError):
    """The folder holds a consortium or a participant already; nothing in it was changed."""

    code = "home_exists"
    default_hint = "choose another folder with --home; keys are never overwritten"


class SettingsMissing(ConfigurationError):
    """coordinator.toml or participant.toml cannot be read."""

    code = "settings_missing"
    exit_status = 66
    default_hint = "give the folder that holds it with --home"


class SettingsSyntaxError(ConfigurationError):
    """coordinator.toml or participant.toml is not TOML."""

    code = "settings_syntax"
    default_hint = "correct the file; docs/pki.md lists its keys"


class AuthorityAbsent(ConfigurationError):
    """The authority's key is not on this machine, or not readable."""

    code = "authority_absent"
    default_hint = "give the folder that holds authority.key with --authority; the command runs where the coordinator's home is"


class CohortTooSmall(ConfigurationError):
    """Fewer than three participants: a sum of two is no protection from the other one."""

    code = "cohort_too_small"
    default_hint = "privacy needs at least three participants"


class CohortTooLarge(ConfigurationError):
    """More participants than the packing or the data can serve."""

    code = "cohort_too_large"
    default_hint = "lower the number of participants"


# -- data ------------------------------------------------------------------------------------------------


class DataError(Error):
    """A participant's data does not fit the study."""

    code = "data"
    exit_status = 65
    default_hint = "compare the file with the [data] section of the study"


class DataFileMissing(DataError):
    """The data file does not exist or cannot be read."""

    code = "data_file_missing"
    exit_status = 66


class ChecksumMismatch(DataError):
    """The data file is not the one whose SHA-256 was agreed on."""

    code = "checksum_mismatch"
    default_hint = "the file is damaged or was changed; restore it from its source"


class MissingColumn(DataError):
    """A column that the study names is not in the data."""

    code = "missing_column"


class DuplicateColumn(DataError):
    """Two columns of the data have the same name."""

    code = "duplicate_column"


class NonNumericColumn(DataError):
    """A column that the study declares numeric holds something else."""

    code = "non_numeric_column"


class InvalidLabel(DataError):
    """A label is missing, not finite, or not among the classes of the study."""

    code = "invalid_label"


class DataUnreadable(DataError):
    """A file or an answer of a database is not what its description in datasets.toml says."""

    code = "data_unreadable"
    default_hint = "compare the data with its description in datasets.toml: kind, delimiter, encoding, query"


class SchemaMismatch(DataError):
    """A data set does not fit the study; all problems are listed."""

    code = "schema_mismatch"
    default_hint = "`hansa participant dataset check NAME STUDY.toml` lists every problem with its count"


class DatabaseUnreachable(DataError):
    """The database does not answer or does not let this user in."""

    code = "database_unreachable"
    exit_status = 69
    default_hint = (
        "check that the database runs, its URL, user and password file; the password is never shown"
    )


class RecipeDataInvalid(DataError):
    """A line of a recipe's data is not what its stage reads."""

    code = "recipe_data_invalid"
    default_hint = (
        'texts are lines of {"text": ...}, preferences of {"prompt": ..., "chosen": ..., "rejected": ...}'
    )


class PartitionImpossible(DataError):
    """No partition gives every participant enough rows and both classes."""

    code = "partition_impossible"
    default_hint = "ask for fewer participants or a lower floor of rows"


# -- models ----------------------------------------------------------------------------------------------


class CheckpointError(Error):
    """A model's files are not what they should be. Nothing was loaded."""

    code = "checkpoint"
    exit_status = 65
    default_hint = "fetch the checkpoint again from its source and compare the checksums"


class CheckpointFileMissing(CheckpointError):
    """The folder of a checkpoint, its config.json or a file that its index names cannot be read."""

    code = "checkpoint_file_missing"
    exit_status = 66
    default_hint = "give a folder with config.json and *.safetensors"


class PickleRefused(CheckpointError):
    """The weights are in a format that runs code when it is read."""

    code = "pickle_refused"
    default_hint = (
        "convert the weights to safetensors on a machine that you can lose; hansa never reads pickle"
    )


class UnsafeCheckpointPath(CheckpointError):
    """The index of a checkpoint names a file outside of its folder."""

    code = "unsafe_checkpoint_path"
    default_hint = "do not use this checkpoint; its index was tampered with"


class CheckpointDamaged(CheckpointError):
    """A file of a checkpoint is cut short or is not in the format that its name says."""

    code = "checkpoint_damaged"


class ForeignConfig(CheckpointError):
    """The config.json describes a model that hansa does not compute."""

    code = "foreign_config"
    default_hint = "mixtral, olmoe, qwen3_moe, deepseek_v2, deepseek_v3 and llama are known, in the forms that were published"


class CheckpointKeyMissing(CheckpointError):
    """A tensor that the configuration asks for is not in the checkpoint."""

    code = "checkpoint_key_missing"


class UnexpectedCheckpointKey(CheckpointError):
    """The checkpoint holds a tensor that the configuration has no place for."""

    code = "unexpected_checkpoint_key"
    default_hint = "the weights and config.json belong to different models"


class CheckpointShapeMismatch(CheckpointError):
    """A tensor of the checkpoint has another shape than the configuration says."""

    code = "checkpoint_shape_mismatch"
    default_hint = "the weights and config.json belong to different models"


class CheckpointTypeMismatch(CheckpointError):
    """A tensor of the checkpoint is not of a floating-point type that hansa computes with."""

    code = "checkpoint_type_mismatch"
    default_hint = "convert quantised weights to bfloat16 first"


class BaseMismatch(CheckpointError):
    """A base model is not the one that was agreed on, or not one for this study."""

    code = "base_mismatch"
    default_hint = "use the base file that the study was proposed with; `hansa study base` makes one"


class ExtraMissing(Error):
    """A package of an optional extra is not installed."""

    code = "extra_missing"
    exit_status = 78
    default_hint = "pip install 'hansa[llm]'"


# -- privacy evidence ------------------------------------------------------------------------------------


class AccountantsDisagree(Error):
    """Independent accountants give epsilons for the same steps that cannot all be right, or one of them gives none."""

    code = "accountants_disagree"
    default_hint = "do not rely on this epsilon; report the noise multiplier, sample rate, steps and delta with the message"


class AuditFailed(Error):
    """An empirical audit measured a lower bound of epsilon above the epsilon that the accounting claims."""

    code = "audit_failed"
    default_hint = (
        "stop training on this installation: clipping, noise or sampling does less than the ledger says"
    )


# -- policy ----------------------------------------------------------------------------------------------


class PolicyRefusal(Error):
    """A participant refuses what it was asked for. Nothing was read and nothing was spent."""

    code = "policy_refusal"
    exit_status = 3
    default_hint = "the participant's own rules decide; ask its administrator"


class BudgetExhausted(PolicyRefusal):
    """The round would take the participant beyond its privacy limit."""

    code = "budget_exhausted"
    default_hint = "the privacy budget of this data set is spent; stop the study or agree on a new budget"


class LedgerDamaged(PolicyRefusal):
    """The budget's ledger cannot be read or its chain is broken; what was spent is not known."""

    code = "ledger_damaged"
    default_hint = "restore the ledger from a backup; until then this data set takes part in nothing"


class LedgerMismatch(PolicyRefusal):
    """The ledger is of another participant, key or data set, or states ε at a larger δ than the study's."""

    code = "ledger_mismatch"
    default_hint = (
        "each data set has its own ledger; give the one of this data set, under the key that opened it"
    )


class LayerMissing(PolicyRefusal):
    """A protection that the participant requires is off in the study."""

    code = "layer_missing"


class UnknownStudy(PolicyRefusal):
    """The participant has not agreed to this study."""

    code = "unknown_study"


class CohortBelowPolicy(PolicyRefusal):
    """The study has fewer participants than the participant's policy asks for."""

    code = "cohort_below_policy"
    default_hint = "lower smallest_cohort in the policy, or find more participants"


class TooManyRounds(PolicyRefusal):
    """The study plans more rounds than the participant's policy allows."""

    code = "too_many_rounds"
    default_hint = "plan fewer rounds, or raise most_rounds in the policy"


class ModelNotAllowed(PolicyRefusal):
    """The base model is not one of those that the participant's policy names, or its hash is not known."""

    code = "model_not_allowed"
    default_hint = "compare the hash of the base model with allow.models in the policy"


class SubmitterNotAllowed(PolicyRefusal):
    """Whoever submits the study is not named in the participant's policy, or is not known."""

    code = "submitter_not_allowed"
    default_hint = "compare the submitter with allow.submitters in the policy"


class TooLittleNoise(PolicyRefusal):
    """Fewer members would add noise to a sum than the study, or the participant's policy, counts on. Nothing was released."""

    code = "too_little_noise"
    default_hint = (
        "begin another attempt when more members are back; an update alone has too little noise to be seen"
    )


class DataAlreadyRegistered(PolicyRefusal):
    """Records of this data set have a budget under another name; a second name would give them a second budget."""

    code = "data_already_registered"
    default_hint = (
        "use the data set under its first name; a data set has one ledger for ever, also when it grows"
    )


class ReleaseNotAgreed(PolicyRefusal):
    """The study does not allow this output to leave the participant."""

    code = "release_not_agreed"


# -- federation ------------------------------------------------------------------------------------------


class FederationError(Error):
    """Who somebody is, or what somebody signed, is not what it must be. Nothing was accepted."""

    code = "federation"
    exit_status = 4
    default_hint = "compare fingerprints with the other side by telephone"


class DocumentMissing(FederationError):
    """The file of a document does not exist or cannot be read."""

    code = "document_missing"
    exit_status = 66
    default_hint = "give the path of the file that the other side sent"


class DocumentMalformed(FederationError):
    """A document is not in its one canonical form, or a field is missing, unknown or of the wrong type."""

    code = "document_malformed"
    exit_status = 65
    default_hint = "ask for the document again; it must arrive byte for byte as it was made"


class DocumentRejected(FederationError):
    """A document is signed by another key, or is for another consortium, participant, study or time."""

    code = "document_rejected"
    default_hint = "do not use the document; ask whoever it names how it came about"


class FingerprintMismatch(FederationError):
    """A fingerprint is not the one that was read out."""

    code = "fingerprint_mismatch"
    default_hint = (
        "ask the other side to read its fingerprint again; if it still differs, somebody stands in between"
    )


class NotAMember(FederationError):
    """Whoever calls a service shows no certificate of a present member."""

    code = "not_a_member"
    default_hint = "enrol with `hansa participant join`, or renew the certificates if they have ended"


class InvitationUnknown(FederationError):
    """There is no invitation for this name, or the request does not prove that its sender has it."""

    code = "invitation_unknown"
    default_hint = "ask the consortium's admin for an invitation"


class InvitationExpired(FederationError):
    """The invitation has ended."""

    code = "invitation_expired"
    default_hint = "ask the consortium's admin for another invitation"


class InvitationUsed(FederationError):
    """The invitation was used before, with other keys."""

    code = "invitation_used"
    default_hint = (
        "ask the consortium's admin for another invitation; if you did not use this one, somebody else did"
    )


class InvitationExhausted(FederationError):
    """Too many wrong requests came under this invitation."""

    code = "invitation_exhausted"
    default_hint = (
        "ask the consortium's admin for another invitation, and tell that somebody tried to use this one"
    )


class RequestForeign(FederationError):
    """A request is for another consortium or another participant."""

    code = "request_foreign"
    default_hint = "give the request that this participant made for this consortium"


class ParticipantRevoked(FederationError):
    """The participant's certificates are revoked."""

    code = "participant_revoked"
    default_hint = "a revoked participant takes part again only by a new invitation, with new keys"


class ParticipantExists(FederationError):
    """There is a participant of this name already."""

    code = "participant_exists"
    exit_status = 1
    default_hint = "choose another name, or revoke the participant first"


class AlreadyApproved(FederationError):
    """The participant was approved before; its certificates stand."""

    code = "already_approved"
    exit_status = 1
    default_hint = "`hansa participant renew NAME` makes new certificates for the same identity"


class AlreadyAnswered(FederationError):
    """The participant answered this proposal before, with another answer."""

    code = "already_answered"
    exit_status = 1
    default_hint = "an answer stands; the author may propose the study again"


class StudyUnknown(FederationError):
    """There is no study of this name or session."""

    code = "study_unknown"
    exit_status = 2
    default_hint = "`hansa study list` shows the studies"


class StudyExists(FederationError):
    """Another study with the same session was proposed."""

    code = "study_exists"
    default_hint = "propose it again; each proposal draws a session of its own"


class StudyAlreadyStarted(FederationError):
    """A study was started, and is to be started otherwise."""

    code = "study_already_started"
    default_hint = "a start stands; `hansa study show NAME` tells where the study is"


class CommandStale(FederationError):
    """A command to a study is older than one that was carried out."""

    code = "command_stale"
    exit_status = 1
    default_hint = "the command was overtaken by a later one; give another one"


class NothingRequested(FederationError):
    """The participant has not sent its request yet."""

    code = "nothing_requested"
    exit_status = 75
    default_hint = "wait for the participant's `hansa participant join`, or give its file with --request"


class EnrolmentPending(FederationError):
    """The consortium's admin has not approved the request yet."""

    code = "enrolment_pending"
    exit_status = 75
    default_hint = "read your fingerprint to the admin, then run `hansa participant join --resume`"


class NotEnoughApprovals(FederationError):
    """Fewer participants approved the study than it needs."""

    code = "not_enough_approvals"
    exit_status = 75
    default_hint = "wait for more approvals, or propose a study for fewer participants"


class CodeBundleRefused(PolicyRefusal):
    """The coordinator wants code of its own to run. It was not fetched, and its messages are not answered."""

    code = "code_bundle_refused"
    default_hint = (
        "a participant runs only the code that it installed; ask the coordinator's operator what was started"
    )


# -- transport -------------------------------------------------------------------------------------------


class TransportError(Error):
    """What carries messages between coordinator and participants does not work. Nothing is lost: it is tried again."""

    code = "transport"
    exit_status = 69
    default_hint = "look at the log of the coordinator, then try again"


class PortInUse(TransportError):
    """Another program listens where hansa was to listen."""

    code = "port_in_use"
    default_hint = "stop the other program, which may be an earlier coordinator, or choose another port"


class SuperLinkFailed(TransportError):
    """Flower's SuperLink does not start, or dies again and again."""

    code = "superlink_failed"
    default_hint = "read superlink.log in the coordinator's folder"


class CoordinatorUnreachable(TransportError):
    """The other side does not answer in time, or the connection broke."""

    code = "coordinator_unreachable"
    default_hint = (
        "check address, firewall and whether the coordinator runs; it is tried again until it answers"
    )


class FlowerRefused(TransportError):
    """Flower's SuperLink answers with an error."""

    code = "flower_refused"


class PathRefused(TransportError):
    """A request from outside is not one that the coordinator passes on to Flower's SuperLink."""

    code = "path_refused"
    default_hint = "only a participant's node speaks to this address; see `hansa participant run`"


class TooManyConnections(TransportError):
    """A participant has more connections open than one needs."""

    code = "too_many_connections"
    exit_status = 75
    default_hint = (
        "run one node for each participant; connections that a dead one left are gone after a minute"
    )


class NodeNotAccepted(TransportError):
    """The SuperLink does not take this node in: it does not know its key yet, or believes that it is still there."""

    code = "node_not_accepted"
    exit_status = 75
    default_hint = (
        "it is tried again; if it stays so, ask the coordinator whether this participant is a member"
    )


class ForeignNode(TransportError):
    """A certificate and a Flower node key, or a message and its sender, do not belong to the same participant."""

    code = "foreign_node"
    exit_status = 4
    default_hint = (
        "use key and certificate of one enrolment; if nobody mixed them up, somebody posed as another"
    )


class ClockSkew(TransportError):
    """The clocks of the two sides are further apart than any honest clocks are."""

    code = "clock_skew"
    exit_status = 78
    default_hint = "set the clock of this machine, for example with NTP"


# -- protocol --------------------------------------------------------------------------------------------


class ProtocolError(Error):
    """A peer or the coordinator does not keep to the protocol. Nothing wrong was accepted."""

    code = "protocol"
    default_hint = "stop the study and find out which party sent this"


class MalformedMessage(ProtocolError):
    """A message is not canonical CBOR, or a field is missing, of the wrong type or of the wrong length."""

    code = "malformed_message"


class BadSignature(ProtocolError):
    """A signature does not verify under the pinned identity key of its sender."""

    code = "bad_signature"


class UnknownSender(ProtocolError):
    """A message comes from somebody who is not in the pinned roster."""

    code = "unknown_sender"


class CertificateRejected(ProtocolError):
    """A certificate or revocation list is not a valid one of the pinned authority for this member and key."""

    code = "certificate_rejected"
    exit_status = 4
    default_hint = (
        "compare it with the pinned authority and roster; the authority issues another one for the same key"
    )


class DuplicateMember(ProtocolError):
    """A participant appears twice."""

    code = "duplicate_member"


class CohortMismatch(ProtocolError):
    """The cohort is not the one that the roster or the signed messages name."""

    code = "cohort_mismatch"


class WrongSession(ProtocolError):
    """A message belongs to another study or session."""

    code = "wrong_session"


class StaleRound(ProtocolError):
    """A message belongs to a round or attempt that is over."""

    code = "stale_round"


class PackageReuse(ProtocolError):
    """A one-time round key was offered for a second cohort."""

    code = "package_reuse"


class OwnKeyMismatch(ProtocolError):
    """The round key shown under the participant's own name is not the one that it made."""

    code = "own_key_mismatch"


class UploadReuse(ProtocolError):
    """A second upload under the same masks was asked for."""

    code = "upload_reuse"


class OutOfOrder(ProtocolError):
    """A message came before the one that it depends on."""

    code = "out_of_order"


class MalformedCiphertext(ProtocolError):
    """Bytes that claim to be a ciphertext are not one of the only form that hansa accepts."""

    code = "malformed_ciphertext"


class HeParameterMismatch(ProtocolError):
    """A ciphertext was made for other encryption parameters or another key."""

    code = "he_parameter_mismatch"


class CiphertextSizeMismatch(ProtocolError):
    """An upload or aggregate has the wrong number or length of ciphertexts."""

    code = "ciphertext_size_mismatch"


class AggregateHashMismatch(ProtocolError):
    """Ciphertexts are not the ones whose hash was signed."""

    code = "aggregate_hash_mismatch"


class AggregateRangeViolation(ProtocolError):
    """A decrypted sum is larger than the sum of all admissible updates."""

    code = "aggregate_range_violation"


class ModelDivergence(ProtocolError):
    """Participants hold different model states after the same round."""

    code = "model_divergence"


class MessageTooLarge(MalformedMessage):
    """A message is longer than any message of its kind can be."""

    code = "message_too_large"


class DuplicateMessage(ProtocolError):
    """A participant's message of one kind came twice in one attempt."""

    code = "duplicate_message"


class WrongEpoch(ProtocolError):
    """A message belongs to another epoch of the session."""

    code = "wrong_epoch"


class HeKeyMismatch(ProtocolError):
    """The keys that the dealer sealed are not those that it committed to, or cannot be opened."""

    code = "he_key_mismatch"


class PackageHashMismatch(ProtocolError):
    """A sealed share, a leaf or a list of leaves is not the one that the signed package's root stands for."""

    code = "package_hash_mismatch"


class PackageLeavesMissing(ProtocolError):
    """Released shares do not give a secret, and the leaves that would tell whose share is wrong are not there."""

    code = "package_leaves_missing"
    default_hint = (
        "a member released a wrong share; ask the coordinator to serve the leaves of the package named"
    )


class ShareOpenFailed(ProtocolError):
    """A sealed share does not open under the key of its two ends."""

    code = "share_open_failed"


class ShareHashMismatch(ProtocolError):
    """An opened share is not the one whose hash stands in the leaf under the signed package's root."""

    code = "share_hash_mismatch"


class ShareCommitmentMismatch(ProtocolError):
    """Shares that match their hashes do not give the secret that their dealer committed to."""

    code = "share_commitment_mismatch"


class NotEnoughShares(ProtocolError):
    """Fewer good shares than the threshold."""

    code = "not_enough_shares"


class NotInCohort(ProtocolError):
    """The participant is not in the cohort that it was asked to take part in."""

    code = "not_in_cohort"


class RosterNotSubset(ProtocolError):
    """The roster of an attempt names somebody who is not in its cohort."""

    code = "roster_not_subset"


class RosterTooSmall(ProtocolError):
    """Fewer members uploaded than the threshold; the attempt cannot be opened."""

    code = "roster_too_small"
    default_hint = "begin another attempt when enough participants are back"


class RosterEquivocation(ProtocolError):
    """Two different rosters or aggregates were shown for one attempt."""

    code = "roster_equivocation"


class NotEnoughConsents(ProtocolError):
    """Fewer members than the threshold agreed to a roster with dropouts."""

    code = "not_enough_consents"


class OwnUploadMissing(ProtocolError):
    """The participant uploaded, and the roster that it was shown leaves it out."""

    code = "own_upload_missing"


class OwnUploadAltered(ProtocolError):
    """The header shown under the participant's own name is not the one that it signed."""

    code = "own_upload_altered"


class AlreadyReleased(ProtocolError):
    """The participant has released shares for this model state; it does so once."""

    code = "already_released"
    default_hint = "a second release would open one participant's update; go on from the next model state"


class GroupSealInvalid(ProtocolError):
    """The shares in a release do not open under the participants' group key."""

    code = "group_seal_invalid"


class UploadTooSlow(ProtocolError):
    """An upload did not arrive whole within its time; nothing of it was added."""

    code = "upload_too_slow"
    default_hint = "send the same upload again over a faster connection, while the roster is open"


class ResultExpired(ProtocolError):
    """The result of a finished round was asked for after the coordinator had removed it to keep within its bounds."""

    code = "result_expired"
    default_hint = (
        "this participant is too far behind to catch up and is out of this study; others go on without it"
    )


class AggregateTagMismatch(ProtocolError):
    """The decrypted aggregate is not the sum of the uploads of the roster."""

    code = "aggregate_tag_mismatch"


class TranscriptDivergence(ProtocolError):
    """Participants continue different histories."""

    code = "transcript_divergence"


class StateRollback(ProtocolError):
    """The others have seen this participant further than its own store says: an old copy was restored."""

    code = "state_rollback"
    default_hint = "never restore old copies of the store; this participant is out of this run of the study, start another one"


class LedgerRewound(ProtocolError):
    """A member shows a shorter or another history of its privacy ledger than it signed before."""

    code = "ledger_rewound"
    default_hint = (
        "the member has put back or replaced its ledger; audit it against the upload headers that were kept"
    )


class KeyRotationDue(ProtocolError):
    """The keys of this epoch have served their rounds, or two sums under them could not be opened."""

    code = "key_rotation_due"
    default_hint = "enter a new epoch; its dealer makes new keys"


class ParticipantLost(ProtocolError):
    """Too few participants answered, or one did not where all must."""

    code = "participant_lost"
    default_hint = "quorum mode can lose n - T participants in a round, strict mode none; look at their logs"


class ParticipantRefused(ParticipantLost):
    """A participant's policy or budget refuses; asking it again changes nothing."""

    code = "participant_refused"
    default_hint = "its owner decides: see the code, and that participant's policy and ledger"


class UpdateShapeMismatch(ProtocolError):
    """An update does not have as many entries as the round's support."""

    code = "update_shape_mismatch"


class UpdateNotFinite(ProtocolError):
    """An update holds NaN or an infinity."""

    code = "update_not_finite"


class UpdateOutOfRange(ProtocolError):
    """A quantised level is outside the range that was agreed on."""

    code = "update_out_of_range"


class AuthenticationFailed(TransportError):
    """The other end of a connection does not show a valid certificate of the consortium for the name that was called."""

    code = "authentication_failed"
    exit_status = 4
    default_hint = "compare the authority's certificate, the coordinator's name and both clocks; send nothing until they agree"


class TooManyCalls(TransportError):
    """A caller has more calls in progress than one caller may have."""

    code = "too_many_calls"
    exit_status = 75
    default_hint = "run one participant under one certificate; calls that hang are given up after a while"


# -- audit -----------------------------------------------------------------------------------------------


class AuditError(Error):
    """An audit found something that does not hold."""

    code = "audit"
    default_hint = "ask the participant for its ledger and for an account of what happened to it"


class LedgerNotVerified(AuditError):
    """A ledger does not hold what it says: form, order, chain, signatures, or the limit on epsilon."""

    code = "ledger_not_verified"
    default_hint = "do not rely on this ledger; compare it with an earlier copy or a tree head that you kept"


class HistoryForked(AuditError):
    """Two histories of one data set, or a history and an earlier tree head of it, do not continue each other."""

    code = "history_forked"
    default_hint = "the participant signed two histories; keep both files, they prove it"


class ProofInvalid(AuditError):
    """An inclusion proof, a consistency proof or a tree head is not one."""

    code = "proof_invalid"
    default_hint = "make the proof again with `hansa audit prove LEDGER --entry N --json`"


class LedgerFileMissing(AuditError):
    """A ledger, proof or tree head does not exist or cannot be read."""

    code = "ledger_file_missing"
    exit_status = 66
    default_hint = "give a folder with ledger-*.jsonl files, or such a file"


class StatementInvalid(AuditError):
    """A participant's statement is not in its only form, or is not signed by the key that it names."""

    code = "statement_invalid"
    default_hint = "do not rely on this statement; ask the participant to make it again"


class StatementMismatch(AuditError):
    """A statement and the ledger beside it do not say the same."""

    code = "statement_mismatch"
    default_hint = "ask the participant for the ledger that goes with this statement, and for an account"


class RecordsContradict(AuditError):
    """Two participants' signed records cannot both be true."""

    code = "records_contradict"
    default_hint = "keep all files; one of the participants named has stated something false or lost an entry"


class StatementIncomplete(AuditError):
    """A statement cannot be made: the ledger names a study that nobody described."""

    code = "statement_incomplete"
    exit_status = 66
    default_hint = "give the study.toml of every study in the ledger with --study"


# -- output ----------------------------------------------------------------------------------------------


class ReportValueInvalid(Error):
    """A result holds a number that is not finite or out of its bounds, or a value that JSON does not have."""

    code = "report_value_invalid"
    default_hint = "this is a fault of the program, not of your input; please report it"


class OutputNotWritable(Error):
    """The folder for the report cannot be made or written to."""

    code = "output_not_writable"
    exit_status = 73
    default_hint = "give a folder that you may write to with --output"


class StateError(Error):
    """What a party must remember from one step to the next cannot be read or kept."""

    code = "state"
    default_hint = "nothing was sent; repair the store before this participant goes on"


class StoreDamaged(StateError):
    """The store was altered, cut short, or sealed under another key."""

    code = "store_damaged"
    default_hint = "do not restore a backup; keep the ledger, remove the store, and take part in the next run of the study"


class StoreInUse(StateError):
    """Another process has the store open."""

    code = "store_in_use"
    default_hint = "only one process may serve a participant; stop the other one"


class StoreNotWritable(StateError):
    """State cannot be written to disk; the old state stands."""

    code = "store_not_writable"
    exit_status = 73
    default_hint = "free disk space or correct the permissions, then try again"


class JournalNotWritable(StateError):
    """The coordinator's database did not take what was to be written; nothing was, or all of it where the message says `may`."""

    code = "journal_not_writable"
    exit_status = 73
    default_hint = "free disk space or bring the database back, then try again"


class JournalUnreachable(StateError):
    """The coordinator's database does not answer."""

    code = "journal_unreachable"
    exit_status = 69
    default_hint = "bring the database back; what waits for it goes on by itself"


class SpoolQuotaExceeded(StoreNotWritable):
    """An upload would take more of the coordinator's disk than its member, or all members together, may have."""

    code = "spool_quota_exceeded"
    exit_status = 75
    default_hint = (
        "the coordinator's administrator can raise the quota of its spool; then the same upload is sent again"
    )


class KeyFileUnsafe(StateError):
    """The file of a store's key is not a file that only its owner can read."""

    code = "key_file_unsafe"
    exit_status = 78
    default_hint = "chmod 600 the file; if others could have read it, make a new key and join again"


class TrainingDiverged(Error):
    """A public training ended in a loss that is not finite."""

    code = "training_diverged"
    default_hint = "lower the phase's learning_rate; the phases before it are kept"


class WorkerFailed(Error):
    """A worker process of the embedded consortium died or failed unexpectedly."""

    code = "worker_failed"
    default_hint = "run the command again with --verbose; a killed worker often means too little memory"


class CheckTimedOut(Error):
    """A check of a side's own set-up did not end in the time that it has."""

    code = "check_timed_out"
    default_hint = "run the doctor again when the machine is less busy"


class CommandFailed(Error):
    """A command of the demonstration's cluster failed; its own words are in the message."""

    code = "command_failed"
    default_hint = "look at the log files in the cluster's folder"


class InternalFailure(Error):
    """Something failed that hansa did not foresee; the message is the traceback."""

    code = "internal_failure"
    default_hint = "this is a fault of the program, not of your input; please report it"


class Interrupted(Error):
    """Stopped by the user; what a command had made durable stands, and of a demonstration nothing is left."""

    code = "interrupted"
    exit_status = 130
    default_hint = "run it again when you like; a demonstration removes its keys and state, other commands go on where they were"
