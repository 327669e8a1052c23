"""Gives the parameters of a model their memory: views of a resident model, and copies where a view is not possible."""

from __future__ import annotations

from typing import Any, Dict, Mapping

import torch

from ..model import Model
from . import _memory, _pieces
from ._build import Bare, NotPossible
from ._options import VIEW
from ._pieces import Resident
from ._record import Recorder
from ._report import Report, size


def fill(
    bare: Bare,
    recorder: Recorder,
    resident: Model,
    places: Mapping[str, Resident],
    dtypes: Mapping[str, Any],
    device: Any,
    copied_share_max: float = 1.0,
) -> Report:
    """`places`: where the files' tensors are resident. `dtypes`: what they are in the files. `device`: where parameters with
    memory of their own are. NotPossible: a parameter is made by something else than copies; nothing is shared; or more
    than this share of the bytes would be copied. Unknown: as replay()."""
    report = Report(VIEW, resident.name)
    values: Dict[str, Any] = {}
    parameters = bare.parameters()
    for name, parameter in parameters.items():
        why, operations = recorder.computed.get(name), recorder.operations[name]
        if why is None and not operations:
            if id(parameter) not in bare.initial:
                raise NotPossible(f"no file has {name}")
            values[name] = bare.initial[id(parameter)][1]
            continue
        if why is None:
            offset, why = _pieces.place(parameter, operations, places)
            if offset is not None:
                values[name] = _memory.view(resident, name, offset, parameter.dtype, parameter.shape)
                report.shared_bytes += parameter.nbytes
                continue
        report.copied[name] = why
        report.copied_bytes += parameter.nbytes
    _check(report, copied_share_max)
    tensors = {name: resident[name].torch() for name in places} if report.copied else {}
    for name, why in report.copied.items():
        if name in recorder.computed:
            raise NotPossible(f"{name}: {why}")
        parameter = parameters[name]
        value = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device=device)
        _pieces.replay(value, recorder.operations[name], places, tensors, dtypes)
        values[name] = value
    bare.put(values)
    return report


def _check(report: Report, copied_share_max: float) -> None:
    total = report.shared_bytes + report.copied_bytes
    if report.shared_bytes == 0 or report.copied_bytes > copied_share_max * total:
        name = next(iter(report.copied), "")
        example = f"; for example {name}: {report.copied[name]}" if name else ""
        raise NotPossible(f"{size(report.copied_bytes)} of {size(total)} would be copied{example}")
