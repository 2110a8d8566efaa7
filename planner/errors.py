"""Errors of the planner.

    PlannerError
    ├── CheckpointError            the checkpoint cannot be used; names the file and the offence
    │   ├── CheckpointNotFoundError    no such folder, or no model_index.json in it
    │   ├── CheckpointFormatError      a file is not what its name says
    │   ├── UnsafeCheckpointError      pickled weights, a path or link that leaves the folder
    │   └── UnknownComponentError      a class that neither diffusers nor transformers has
    ├── PlanRequestError           the request contradicts itself or the checkpoint
    ├── ClusterError               the cluster's description cannot be read
    ├── ProfileError               measurements cannot be read or kept
    └── InfeasiblePlanError        nothing fits; carries the numbers of every option tried

Every error is made of one message, so that it survives pickling across actors.
"""


class PlannerError(Exception):
    """Base of everything that the planner raises on purpose."""


class CheckpointError(PlannerError):
    """The checkpoint cannot be used as it is."""


class CheckpointNotFoundError(CheckpointError):
    """There is no checkpoint in diffusers layout at the path given."""


class CheckpointFormatError(CheckpointError):
    """A file of the checkpoint is truncated, malformed or inconsistent."""


class UnsafeCheckpointError(CheckpointError):
    """The checkpoint would make the system read pickled code or leave its own folder."""


class UnknownComponentError(CheckpointError):
    """`model_index.json` names a class that neither diffusers nor transformers has."""


class PlanRequestError(PlannerError):
    """What was asked for contradicts itself or the checkpoint."""


class ClusterError(PlannerError):
    """The cluster's description cannot be read."""


class ProfileError(PlannerError):
    """Calibration profiles cannot be read or kept."""


class InfeasiblePlanError(PlannerError):
    """No plan fits; `report_json` is the serialized `InfeasibleReport` with the number that ruled each option out."""

    def __init__(self, message: str, report_json: str) -> None:
        super().__init__(message, report_json)
        self.message = message
        self.report_json = report_json

    def __str__(self) -> str:
        return self.message
