"""Errors of the workers.

    WorkerError
    ├── GroupStartError          the group did not come up; everything it started is gone again
    ├── GroupDiedError           a rank died or hung; the group cannot be used any more
    ├── CallError                this call failed, the group is clean and takes the next one
    │   ├── InvalidCallError         the pipeline refuses the arguments
    │   ├── CallOutOfMemoryError     it needs more memory than there is
    │   ├── CallCancelledError       somebody cancelled it
    │   └── DeadlineExceededError    it took longer than its deadline
    └── LoadError                a component cannot be loaded

Every error is made of one message, so that it survives pickling across actors.
"""


class WorkerError(Exception):
    """Base of everything that the workers raise on purpose."""


class GroupStartError(WorkerError):
    """The group did not come up; everything it started is gone again."""


class GroupDiedError(WorkerError):
    """A rank died or hung; the group cannot be used any more."""


class CallError(WorkerError):
    """This call failed; the group is clean and takes the next one."""


class InvalidCallError(CallError):
    """The pipeline refuses the arguments."""


class CallOutOfMemoryError(CallError):
    """The call needs more memory than there is, on some rank; what it held is free again."""


class CallCancelledError(CallError):
    """The call was cancelled."""


class DeadlineExceededError(CallError):
    """The call took longer than its deadline."""


class LoadError(WorkerError):
    """A component cannot be loaded."""
