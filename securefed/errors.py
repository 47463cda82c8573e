"""Every error that securefed raises on purpose.

    SecureFedError
    ├── ConfigError            a setting, file or argument of yours is wrong
    │   └── DataError          a client's data is missing, empty or malformed
    ├── ProtocolError
    │   ├── LocalProtocolError   this side misused the protocol
    │   └── RemoteProtocolError  the other side sent something it must not
    │       └── WireError        bytes that are not a message of this protocol
    ├── ThresholdNotMet        too few clients are left to go on safely
    ├── BudgetExceeded         the next step would spend privacy that is not there
    ├── OverflowBoundError     a sum could leave the ring: refused beforehand
    ├── UnsupportedEvent       an accountant was given what it cannot account
    ├── LedgerError            a ledger cannot be written (a full disk, say)
    │   └── LedgerTampered     a ledger does not verify
    ├── EvidenceStale          stored evidence no longer fits code or settings
    ├── FetchError             a model or corpus could not be had, or has the wrong hash
    └── GradientCheckError     per-example gradients are missing or wrong

A message names the field, its value and what is allowed.  It never contains key material, a
client's data or a client's update.
"""


class SecureFedError(Exception):
    """Root of every deliberate error of this package."""


class ConfigError(SecureFedError, ValueError):
    """A setting or an argument is outside what is allowed."""


class DataError(ConfigError):
    """A client's data is missing, empty, too small or malformed."""


class ProtocolError(SecureFedError):
    """The secure-aggregation protocol was violated."""


class LocalProtocolError(ProtocolError):
    """This side called the protocol out of order or with arguments that break its rules."""


class RemoteProtocolError(ProtocolError):
    """The peer sent a message that the protocol forbids; nothing was disclosed in reply."""


class WireError(RemoteProtocolError):
    """Bytes do not decode to a well-formed message."""


class ThresholdNotMet(ProtocolError):
    """Fewer clients are left than the agreed floor; the round ends without a result."""


class BudgetExceeded(SecureFedError):
    """A privacy charge would exceed the budget; nothing was spent."""


class OverflowBoundError(SecureFedError, ValueError):
    """The sum could leave the ring with the settings given."""


class UnsupportedEvent(SecureFedError):
    """An accountant met a privacy event it has no proven bound for."""


class LedgerError(SecureFedError):
    """The ledger could not be written or read."""


class LedgerTampered(LedgerError):
    """The ledger's hash chain, head or content does not verify."""


class EvidenceStale(SecureFedError):
    """Stored evidence was made for other code, settings or model."""


class FetchError(SecureFedError):
    """A model or corpus could not be fetched, or does not have the pinned hash."""


class GradientCheckError(SecureFedError):
    """Per-example gradients are missing, of the wrong shape or wrong in value."""
