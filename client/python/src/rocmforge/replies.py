"""The parts of the daemon's replies, as typed dictionaries.

The interface io.rocmforge describes what each field means. Sizes are in bytes, times in seconds. A reply may have
further fields if the daemon is newer than this package.
"""

from __future__ import annotations

from typing import Any, List, NamedTuple, Optional, TypedDict


class FormRule(TypedDict):
    """A form for tensors whose names match a pattern."""

    match: str
    form: str


class _Group(TypedDict, total=False):
    stack: Optional[int]
    heads: Optional[int]
    cut: Optional[str]


class Group(_Group):
    """Tensors that stand in memory as neighbours, without padding, and are one tensor more.

    stack: None: they are joined along the first dimension. n: each n of them are, and the results are stacked.
    heads: the rows of so many heads stand in pairs in the file, and in halves in memory.
    cut: what one process of several gets of each member: "whole", "rows", "columns".
    """

    name: str
    members: List[str]


class _Tp(TypedDict, total=False):
    heads: Optional[int]
    kvHeads: Optional[int]


class Tp(_Tp):
    """Which part of a model that `size` processes share. heads, kvHeads: all attention heads of the model."""

    rank: int
    size: int


class _ModelInfo(TypedDict, total=False):
    forms: Optional[List[FormRule]]
    layout: Optional[str]
    groups: Optional[List[Group]]
    tp: Optional[Tp]
    formsLeft: Optional[int]
    groupsLeft: Optional[int]
    position: Optional[int]
    source: Optional[str]
    key: Optional[str]
    deleted: Optional[bool]


class ModelInfo(_ModelInfo):
    """A model that is resident, being loaded or being unloaded."""

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
    heldUp: bool
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
    cached: Optional[int]
    queued: int
    available: int
    export: str
    state: str
    link: Optional[int]
    noKernels: Optional[str]


class Progress(TypedDict):
    """The progress of a load or a verification: bytes, bytes per second, seconds."""

    state: str
    done: int
    total: int
    rate: int
    left: Optional[float]


class Phases(TypedDict, total=False):
    """The times of a load's phases, in microseconds; link in bytes per second."""

    total: int
    parse: int
    allocate: int
    read: int
    dequantise: int
    copy: int
    kernel: int
    link: Optional[int]


class Span(TypedDict):
    """One period of a load, in microseconds since the request."""

    row: str
    name: str
    begin: int
    length: int


class Published(NamedTuple):
    """What the publisher of a model says of it."""

    key: Optional[str]
    metadata: Any  # what was given to publish(); text that is no JSON is a str; None: nothing


class _NewTensor(TypedDict):
    name: str
    type: str
    shape: List[int]


class NewTensor(_NewTensor, total=False):
    """A tensor of a model that is to be published. strides: in elements."""

    strides: Optional[List[int]]
    offset: Optional[int]


class _TensorInfo(TypedDict, total=False):
    strides: Optional[List[int]]
    view: Optional[bool]


class TensorInfo(_TensorInfo):
    """A tensor, and its place in the model's memory. view: its bytes are also those of other tensors: a group, or of a
    published model."""

    name: str
    type: str
    form: str
    shape: List[int]
    offset: int
    size: int


class MetadataEntry(TypedDict):
    """One entry of a file's metadata in the reply of Show: long values are cut."""

    key: str
    type: str
    count: Optional[int]
    value: str


class Lease(TypedDict):
    """A lease and its holder."""

    lease: int
    model: str
    pid: int
    uid: int
    age: float


class Mismatch(TypedDict):
    """A tensor whose memory differs from the decoded file, and the first byte that differs."""

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
    layout: Optional[str]
    groups: Optional[List[Group]]
    tp: Optional[Tp]
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


class _VerifyReply(TypedDict, total=False):
    deleted: Optional[bool]


class VerifyReply(_VerifyReply):
    tensors: int
    bytes: int
    mismatches: List[Mismatch]
    replaced: bool


class MetricLabel(TypedDict):
    name: str
    value: str


class _MetricSample(TypedDict):
    labels: List[MetricLabel]
    value: float


class MetricSample(_MetricSample, total=False):
    suffix: str


class Metric(TypedDict):
    name: str
    type: str
    help: str
    samples: List[MetricSample]


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
    heldUp: int
    isa: str


class Event(TypedDict, total=False):
    """A reply of Watch: first each model in its present state, then each change of state."""

    event: str
    model: ModelInfo
    models: List[ModelInfo]
    error: str
