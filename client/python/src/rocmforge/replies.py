"""What the daemon's answers are made of, as dictionaries with types.

They are those of the interface io.rocmforge, which says what each field means. Sizes are bytes, times are seconds. An
answer may have further fields when the daemon is newer than this package.
"""

from __future__ import annotations

from typing import List, Optional, TypedDict


class FormRule(TypedDict):
    """A form for tensors whose names match a pattern."""

    match: str
    form: str


class _ModelInfo(TypedDict, total=False):
    forms: Optional[List[FormRule]]
    position: Optional[int]


class ModelInfo(_ModelInfo):
    """A model that is resident, or on its way."""

    name: str
    id: int
    path: Optional[str]
    form: str
    device: str
    state: str
    bytes: int
    size: int
    tensors: int
    leases: int
    pinned: bool
    ttl: Optional[int]
    idle: Optional[float]
    uid: int
    private: bool
    access: str
    aliases: List[str]
    changed: bool
    overflows: int


class Device(TypedDict, total=False):
    """A memory that models can be resident in."""

    id: str
    kind: str
    name: str
    uuid: Optional[str]
    pci: Optional[str]
    total: int
    budget: int
    used: int
    others: int
    queued: int
    available: int
    export: str
    state: str
    link: Optional[int]
    noKernels: Optional[str]


class Progress(TypedDict):
    """How far a load or a verification is: bytes, bytes per second, seconds."""

    state: str
    done: int
    total: int
    rate: int
    left: Optional[float]


class Phases(TypedDict, total=False):
    """Where the time of a load went, in microseconds; link in bytes per second."""

    total: int
    parse: int
    allocate: int
    read: int
    dequantise: int
    copy: int
    kernel: int
    link: Optional[int]


class Span(TypedDict):
    """A stretch of time of a load, in microseconds since the request."""

    row: str
    name: str
    begin: int
    length: int


class TensorInfo(TypedDict):
    """A tensor, and where it stands in the model's memory."""

    name: str
    type: str
    form: str
    shape: List[int]
    offset: int
    size: int


class MetadataEntry(TypedDict):
    """One entry of a file's metadata, as Show tells it: long values are cut."""

    key: str
    type: str
    count: Optional[int]
    value: str


class Lease(TypedDict):
    """Who holds a lease."""

    lease: int
    model: str
    pid: int
    uid: int
    age: float


class Mismatch(TypedDict):
    """A tensor whose memory is not what the file decodes to, and the first byte that differs."""

    tensor: str
    offset: int


class LoadReply(TypedDict, total=False):
    model: ModelInfo
    phases: Phases
    trace: List[Span]


class PlanReply(TypedDict, total=False):
    device: str
    form: str
    forms: Optional[List[FormRule]]
    bytes: int
    size: int
    tensors: int
    fits: bool
    error: Optional[str]
    available: int
    evicts: List[str]
    seconds: Optional[float]
    model: Optional[ModelInfo]


class ShowReply(TypedDict):
    model: ModelInfo
    metadata: List[MetadataEntry]
    tensors: List[TensorInfo]
    leases: List[Lease]


class VerifyReply(TypedDict):
    tensors: int
    bytes: int
    mismatches: List[Mismatch]


class StatusReply(TypedDict):
    version: str
    interface: int
    pid: int
    uptime: float
    connections: int
    models: int
    leases: int
    loads: int
    workers: int
    isa: str


class Event(TypedDict, total=False):
    """What Watch tells: first the models as they are, then each change of state."""

    event: str
    model: ModelInfo
    models: List[ModelInfo]
    error: str
