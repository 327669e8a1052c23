"""The loader that `vllm serve --load-format rocmforge` uses."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
from vllm.utils.torch_utils import set_default_torch_dtype

from .. import errors
from ..client import Client, connect
from ..model import Model
from . import _build, _engine, _fill, _keys, _memory, _options, _pieces, _processed, _record, _remembered, _report, _sources
from ._build import NotPossible
from ._options import ADOPT, COPY, VIEW
from ._report import Report

# Below vLLM's logger, so that it is seen where vLLM's own messages are.
log = logging.getLogger("vllm.rocmforge")

# If more of the weights than this would have memory of their own, adopting processed weights is tried first.
_COPIED_SHARE_MAX = 0.1

Feed = Callable[[], Iterable[Tuple[str, Any]]]


# Models that were loaded for get_external_weight_memory(), until load_model() has been called.
_kept: List[Model] = []


class Refused(RuntimeError):
    """The weights cannot be shared, and ROCMFORGE_STRICT is set."""


class RocmforgeLoader(DefaultModelLoader):  # type: ignore[misc]
    """Gives a model its weights from a daemon's memory, or else as vLLM does."""

    def __init__(self, load_config: Any) -> None:
        self.options = _options.read(load_config.model_loader_extra_config)
        super().__init__(dataclasses.replace(load_config, load_format="auto", model_loader_extra_config={}))
        self._feed: Optional[Feed] = None  # where the weights come from while they are loaded; None: from the files
        self._primary: Optional[Any] = None  # the model's name, as the source of the weights that the feed has
        self.publishes = False  # whether models that are made will be published
        self.watch: Optional[_remembered.Watch] = None  # of the last one that will be
        self.made: Dict[str, str] = {}  # what the last one that will be was made of
        self.loaded_bytes = 0  # of the parameters of the last model, before it was processed

    # --- vLLM's interface ---

    def get_external_weight_memory(self, vllm_config: Any) -> int:
        """Bytes on the GPU that the weights take outside of this process. vLLM asks before it looks how much memory is
        free, so a model that is to be views is loaded now, and kept until load_model() has attached to it."""
        if _engine.target_device(vllm_config).type == "cpu":
            return 0
        try:
            with connect(self.options.socket) as client:
                resident = _Load(self, client, vllm_config, vllm_config.model_config, "").outside()
        except Exception as error:  # load_model() will find the same, and say it
            log.debug("rocmforge: no weights outside: %s", _why(error))
            return 0
        if resident is None:
            return 0
        _kept.append(resident)
        return resident.nbytes

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        try:
            return self._load_model(vllm_config, model_config, prefix)
        finally:
            while _kept:
                _kept.pop().close(force=True)

    def _load_model(self, vllm_config: Any, model_config: Any, prefix: str) -> Any:
        reasons: List[str] = []
        registered = _build.Registered(vllm_config)
        try:
            with connect(self.options.socket) as client:
                load = _Load(self, client, vllm_config, model_config, prefix)
                for way in (load.view, load.adopt, load.copy):
                    if not self.options.may(way.__name__):
                        continue
                    try:
                        model, report = way()
                    except Exception as error:
                        log.debug("rocmforge: %s failed", way.__name__, exc_info=True)
                        reasons.append(f"{way.__name__}: {_why(error)}")
                        registered.undo()
                        continue
                    report.reasons = reasons
                    return self._done(model, report)
        except errors.Error as error:  # of connecting
            reasons.append(_why(error))
        return self._by_engine(vllm_config, model_config, prefix, reasons)

    def _done(self, model: Any, report: Report) -> Any:
        for reason in report.reasons:
            log.info("rocmforge: not by %s", reason)
        log.info("rocmforge: by %s: %s", report.way, report)
        for name, why in list(report.copied.items())[:3]:
            log.info("rocmforge: %s has memory of its own: %s", name, why)
        _report.add(report)
        return model

    def _by_engine(self, vllm_config: Any, model_config: Any, prefix: str, reasons: List[str]) -> Any:
        why = "; ".join(reasons) or "no way may be taken"
        if _options.strict():
            raise Refused(f"rocmforge: the weights cannot be shared, and ROCMFORGE_STRICT is set: {why}")
        log.warning("rocmforge: the weights are loaded from the files, and are not shared: %s", why)
        self._feed = None
        model = super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
        report = Report("engine", reasons=reasons)
        report.copied_bytes = self.loaded_bytes
        _report.add(report)
        return model

    def load_weights(self, model: Any, model_config: Any) -> None:
        super().load_weights(model, model_config)
        # Processing may keep weights somewhere else than in parameters.
        self.loaded_bytes = sum(parameter.nbytes for parameter in model.parameters())

    def create_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        model = super().create_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
        if self.publishes:
            if _engine.target_device(vllm_config).type == "cpu":
                _build.compute_on_plain_weights(model, vllm_config)
            self.watch = _remembered.Watch(model)
            self.made = _processed.made(model)
        return model

    def _get_weights_iterator(self, source: Any) -> Any:
        primary = source.model_or_path == self._primary and not source.subfolder and not source.prefix
        if self._feed is None or not primary:
            return super()._get_weights_iterator(source)
        self.counter_before_loading_weights = time.perf_counter()  # for vLLM's message of how long it took
        return self._wanted(self._feed(), source)

    def _wanted(self, tensors: Iterable[Tuple[str, Any]], source: Any) -> Iterator[Tuple[str, Any]]:
        """Without those that vLLM's own iterators leave out."""
        unused = getattr(source, "is_unused_weight", None)
        local = getattr(self, "local_expert_ids", None)
        if local is not None:
            from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight
        for name, tensor in tensors:
            if (unused is not None and unused(name)) or (local is not None and should_skip_weight(name, local)):
                continue
            yield name, tensor

    @contextlib.contextmanager
    def fed(self, model_config: Any, feed: Feed) -> Iterator[None]:
        """While this is in force, weights come from the feed and not from the files."""
        self._feed, self._primary = feed, model_config.model
        try:
            yield
        finally:
            self._feed = None

    def load_from(self, vllm_config: Any, model_config: Any, prefix: str) -> Any:
        """vLLM's own loading, from the feed."""
        return super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)

    def files(self, model: Any, model_config: Any) -> List[str]:
        """The safetensors files of a model, fetched as vLLM does. NotPossible: they are others."""
        files, are_safetensors = self.all_files(model, model_config)
        if not are_safetensors:
            raise NotPossible("its files are no safetensors files")
        return files

    def all_files(self, model: Any, model_config: Any) -> Tuple[List[str], bool]:
        """The model's files, whatever they are, and whether that is safetensors. `model`: None if it was not made yet."""
        multimodal = getattr(model_config, "multimodal_config", None)
        if multimodal is not None and getattr(multimodal, "mm_encoder_only", False):
            raise NotPossible("only the encoder is loaded")
        _, files, are_safetensors, *_ = self._prepare_weights(
            model_config.model, None, model_config.revision, True, getattr(model, "allow_patterns_overrides", None)
        )
        return sorted(files), bool(are_safetensors)


def _why(error: BaseException) -> str:
    if isinstance(error, (NotPossible, _pieces.Unknown, _memory.WouldWrite, errors.Error)):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _whole(resident: Model, name: str, source: Any) -> Any:
    """A tensor of the files as it is resident, without zeros that the layout has put behind it."""
    tensor = resident[name].torch()
    return tensor if tensor.shape == source.shape else tensor[: source.shape[0]]


class _Load:
    """One load of a model."""

    def __init__(self, loader: RocmforgeLoader, client: Client, config: Any, model_config: Any, prefix: str) -> None:
        self.loader = loader
        self.options = loader.options
        self.client = client
        self.config = config
        self.model_config = model_config
        self.prefix = prefix
        self.device = _engine.target_device(config)
        self._key, self._no_key = "", "adopting was not allowed"
        if self.options.may(ADOPT):
            self._find_key()

    def _find_key(self) -> None:
        """Before a model is made, which may change the configuration."""
        try:
            files, _ = self.loader.all_files(None, self.model_config)
            self._key = _engine.key(self.config, self.model_config, self.device, files, self.prefix)
        except Exception as error:  # by whatever another version of vLLM has otherwise
            self._no_key = f"what is published has no key: {_why(error)}"

    def outside(self) -> Optional[Model]:
        """Attaches to the model that the weights will probably be views of. None: none is known yet."""
        if self.options.may(VIEW) and self.model_config.quantization is None:
            files = self.loader.files(None, self.model_config)
            return self._resident(files, self._layouts(_sources.of(files)), self._daemon_device())
        return self._published() if self._key else None

    # --- the ways, by their names ---

    def view(self) -> Tuple[Any, Report]:
        """The parameters are views of the model that is resident in the layout of vLLM."""
        bare = self._bare()
        _build.check_views(bare.model)
        if self.device.type == "cpu" and self.options.cpu_prepack:
            raise NotPossible("cpu_prepack copies the weights")
        self._check_rearranged()
        files = self.loader.files(bare.model, self.model_config)
        sources = _sources.of(files)
        recorder = self._record(bare, sources)
        with self._resident(files, self._layouts(sources), self._daemon_device()) as resident:
            places = _memory.places(resident, sources, *_engine.tensor_parallel())
            _memory.check_parts(resident, places, sources, files)
            share = _COPIED_SHARE_MAX if self.options.may(ADOPT) else 1.0
            dtypes = {name: source.dtype for name, source in sources.items()}
            report = _fill.fill(bare, recorder, resident, places, dtypes, self.device, share)
            if self.device.type == "cpu":
                _build.compute_on_plain_weights(bare.model, self.config)
            return self._processed(bare, [resident]), report

    def adopt(self) -> Tuple[Any, Report]:
        """The parameters are views of what a first process has published after vLLM has processed it. If there is nothing,
        this process does that."""
        if not self._key:
            raise NotPossible(self._no_key)
        registered = _build.Registered(self.config)
        bare = self._bare()
        _build.check_processed(bare.model, self.device.type == "cpu")
        if self.device.type == "cpu" and self.options.cpu_prepack:
            raise NotPossible("weights that were packed for the CPU are no parameters")
        self._check_rearranged()
        resident = self._published()
        if resident is None:
            if not self.options.publish:
                raise NotPossible("nothing was published for this engine and this model")
            registered.undo()
            resident = self._publish_first()
            registered.undo()
            bare = self._bare()
        with resident:
            told = resident.metadata().get("vllm") or {}
            report = _processed.adopt(bare, resident, told, self.device)
            _remembered.adopt(bare.model, told["layers"])
            if self.device.type == "cpu":
                _build.compute_on_plain_weights(bare.model, self.config)
            from vllm.model_executor.utils import weights_already_processed

            with weights_already_processed():
                model = self._processed(bare, [resident])
            _processed.drop_the_rest(model)
            _remembered.check(model, told["probes"], self.model_config.dtype, self.device)
            return model, report

    def copy(self) -> Tuple[Any, Report]:
        """vLLM's own loading, from what is resident instead of the files."""
        files = self.loader.files(None, self.model_config)
        sources = _sources.of(files)
        with self._to_copy(files) as resident:
            guard = _memory.ReadOnly([resident])

            def feed() -> Iterator[Tuple[str, Any]]:
                for name, source in sources.items():
                    yield name, _whole(resident, name, source)

            with self.loader.fed(self.model_config, feed), guard:
                model = self.loader.load_from(self.config, self.model_config, self.prefix)
            for parameter in model.parameters():
                if guard.has(parameter):
                    parameter.data = parameter.data.clone()
            return model, Report(COPY, resident.name, copied_bytes=self.loader.loaded_bytes)

    # --- parts of them ---

    @contextlib.contextmanager
    def _making(self) -> Iterator[None]:
        with set_default_torch_dtype(self.model_config.dtype), self.device:
            yield

    def _bare(self) -> _build.Bare:
        with self._making():
            return _build.Bare(
                lambda: initialize_model(
                    vllm_config=self.config, model_config=self.model_config, prefix=self.prefix
                )
            )

    def _check_rearranged(self) -> None:
        if getattr(self.config.parallel_config, "enable_eplb", False):
            raise NotPossible("experts are moved while the engine runs (enable_eplb)")

    def _record(self, bare: _build.Bare, sources: Dict[str, Any]) -> _record.Recorder:
        recorder = _record.Recorder(bare.parameters(), sources)
        with self.loader.fed(self.model_config, sources.items), recorder:
            self.loader.load_weights(bare.model, self.model_config)
        recorder.finish()
        return recorder

    def _layouts(self, sources: Optional[Dict[str, Any]] = None) -> List[Dict[str, Any]]:
        """The layouts in which the model may be resident, the best one first. With `tp` the vocabulary is padded, too, but
        some models are refused. `sources`: of the files, if the tensors may be resident in the engine's dtype instead of
        the files'."""
        rank, size = _engine.tensor_parallel()
        whole: List[Dict[str, Any]] = [{"layout": "vllm"}, {}] if size == 1 else []
        form = _sources.form(sources, self.model_config.dtype) if sources else None
        given = {} if form is None else {"form": form}
        return [{**layout, **given} for layout in [{"layout": "vllm", "tp": (rank, size)}, *whole]]

    def _daemon_device(self) -> str:
        device = _engine.daemon_device(self.client, self.device)
        if device is None:
            raise NotPossible(f"the daemon does not have {self.device}")
        return device

    def _resident(
        self, files: Sequence[str], layouts: Sequence[Dict[str, Any]], device: str, load: Optional[bool] = None
    ) -> Model:
        """Attaches to the model of these files. It is loaded if that is allowed and it is not resident."""
        load = self.options.load if load is None else load
        why = "the model is not resident"
        for layout in layouts:
            try:
                there = self.client.plan(files, device=device, **layout).get("model")
                if load or there is not None:
                    names = _keys.names(self.model_config.model, files, layout)
                    names = names if there is None else [there["name"], *names]
                    return self._load_attach(names, files, device=device, **layout)
            except errors.InvalidLayout as error:
                why = str(error)
        raise NotPossible(why)

    def _load_attach(self, names: Sequence[Optional[str]], files: Sequence[str], **options: Any) -> Model:
        """By the first of these names that no other model has, for example in another layout; None: the file's."""
        for name in names[:-1]:
            try:
                return self.client.load_attach(files, name=name, deadline=self.options.deadline, **options)
            except errors.NameInUse:
                continue
        return self.client.load_attach(files, name=names[-1], deadline=self.options.deadline, **options)

    def _to_copy(self, files: Sequence[str]) -> Model:
        """A whole model to copy from. On a GPU that is not loaded for this, since it would be there twice."""
        layouts = self._layouts() if _engine.tensor_parallel()[1] == 1 else [{}]
        if self.device.type != "cpu":
            try:
                return self._resident(files, layouts, self._daemon_device(), load=False)
            except NotPossible:
                layouts = [{}]
        return self._resident(files, layouts, "host")

    def _published(self) -> Optional[Model]:
        """Attaches to what was published with this key. Waits for who is publishing it."""
        made = self.client.create(
            _keys.name(self.model_config.model, self._key), nbytes=1, key=self._key, device=self._daemon_device(),
            deadline=self.options.deadline,
        )  # fmt: skip
        if isinstance(made, Model):
            return made
        made.close()
        return None

    def _publish_first(self) -> Model:
        """Publishes what vLLM makes of the weights, unless another process does that meanwhile: the others wait until the
        first one has ended."""
        name = _keys.name(self.model_config.model, self._key)
        turn = self.client.create(
            f"{name}.turn", nbytes=1, key=f"{self._key} turn", device="host", deadline=self.options.deadline
        )
        with turn:
            resident = self._published()
            if resident is not None:
                return resident
            model, layers = self._by_vllm()
            tensors, told = _processed.export(model)
            told.update(layers=layers, made=self.loader.made)
            told["probes"] = _remembered.probe(model, layers, self.model_config.dtype, self.device)
            return self.client.publish(
                name, tensors, metadata={"vllm": told}, key=self._key, device=self._daemon_device()
            )

    def _by_vllm(self) -> Tuple[Any, Dict[str, Any]]:
        """A model that vLLM loads by itself, for publishing, and what processing has changed in its layers."""
        self.loader.publishes = True
        try:
            model = self.loader.load_from(self.config, self.model_config, self.prefix)
            assert self.loader.watch is not None
            return model, self.loader.watch.changes()
        finally:
            self.loader.publishes, self.loader.watch = False, None

    def _processed(self, bare: _build.Bare, models: Sequence[Model]) -> Any:
        """Has vLLM do what it does after loading, without writing to the memory of these models."""
        with self._making(), _memory.ReadOnly(models):
            process_weights_after_loading(bare.model, self.model_config, self.device)
        bare.refuse_loading()
        return bare.model.eval()
