"""Training with a sharded base (FSDP2): each rank keeps a shard of every layer, and layers are gathered one by one.

torch's fully_shard gathers a layer before its forward and its backward and frees it afterwards. Only the frozen base is
sharded: adapters are attached later and are whole on every rank. Their gradients are summed by lorafit's own
all-reduce, as without sharding. The head is gathered once per pass, since the loss uses the head in chunks.

A gather needs all ranks, so each rank makes as many passes as the rank with the most micro-batches. The extra passes
compute a tiny micro-batch with weight 0.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from lorafit.data.micro_batch import MicroBatch
from lorafit.distributed.collectives import RankLost
from lorafit.engines.base import OutOfMemory, Setup
from lorafit.engines.torch import self_check
from lorafit.engines.torch.attention import SEGMENT_ATTENTION
from lorafit.engines.torch.device import DTYPES, arithmetic_dtype, get_device, translated
from lorafit.engines.torch.hf_path import GenericPath
from lorafit.engines.torch.low_bit_linear import compute_in_float32
from lorafit.engines.torch.model import decoder_layers, load_base
from lorafit.engines.torch.model_class import decoder_of, read_config, text_class
from lorafit.engines.torch.process_group import TorchCollectives
from lorafit.models.weight_files import read_headers, weight_files


class ShardedPath(GenericPath):
    """The generic path over a base that is sharded across ranks."""

    def __init__(self, path: GenericPath, setup: Setup, shards: "Shards") -> None:
        super().__init__(path.model, path.head, path.dropout, path.chunk)
        assert isinstance(setup.ranks, TorchCollectives)
        self.ranks, self.device, self.shards = setup.ranks, get_device(setup.device), shards
        self.tiny = self_check.tiny_micro_batch(path.model).single_sample(0)

    def accumulate(self, step: int, micro_batches: Sequence[MicroBatch], weight: float) -> list[Tensor]:
        """Return the loss sums and add the gradients, with extra passes until all ranks have made equally many."""
        with self._rank_lost_on_oom():
            singles, idle = self._passes(micro_batches)
            losses = [self._pass(micro, step, weight) for micro in singles]
            for _i in range(idle):
                self._pass(self.tiny, step, 0.0)
            return losses

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Return the loss sums without gradients, with extra passes until all ranks have made equally many."""
        with self._rank_lost_on_oom():
            singles, idle = self._passes(micro_batches)
            losses = []
            for micro in [*singles, *[self.tiny] * idle]:
                with self.shards.gathered_head():
                    losses += super().evaluate([micro])
            return losses[: len(singles)]

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """Return a context with the head gathered, in which the model may be called. All ranks enter together."""
        context: contextlib.AbstractContextManager[None] = self.shards.gathered_head()
        return context

    def _passes(self, micro_batches: Sequence[MicroBatch]) -> tuple[list[MicroBatch], int]:
        """Return the micro-batches to compute, and the number of extra passes to match the busiest rank."""
        singles = [single for micro in micro_batches for single in micro.parts(self.packs)]
        return singles, int(self.ranks.all_reduce_max(len(singles))) - len(singles)

    def _pass(self, micro: MicroBatch, step: int, weight: float) -> Tensor:
        self.ranks.waiting()  # report progress: a gather waits for the other ranks without a report
        with self.shards.gathered_head():
            return self.forward_backward(micro, step, weight)

    @contextlib.contextmanager
    def _rank_lost_on_oom(self) -> Iterator[None]:
        """Turn OutOfMemory into RankLost: this rank must leave, since the others are in the middle of a layer."""
        try:
            with self.ranks.raising_rank_lost(), translated(self.device):
                yield
        except OutOfMemory as error:
            place = self.ranks.own_rank
            raise RankLost(place.rank, place.count, error.brief) from error


class Shards:
    """The head's sharded weight (`owner.weight`), and the layer `head` that the weight is gathered into."""

    def __init__(self, head: nn.Module, owner: nn.Module) -> None:
        self.head, self.owner, self._depth = head, owner, 0

    @contextlib.contextmanager
    def gathered_head(self) -> Iterator[None]:
        """Give `head` its whole weight inside. All ranks enter together; nested contexts gather once."""
        if self._depth == 0:
            weight = self.owner.weight
            assert isinstance(weight, DTensor)
            self.head.weight = nn.Parameter(weight.full_tensor(), requires_grad=False)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.head.weight = _nothing()


def is_sharded(setup: Setup) -> bool:
    """Return whether the base is sharded across several ranks."""
    return setup.plan is not None and setup.plan.shard and setup.ranks.own_rank.count > 1


def load_sharded(setup: Setup) -> tuple[PreTrainedModel, Shards]:
    """Load the base like load_base(), but keep only this rank's shard; return the model and the head's shards.

    Weights are read layer by layer, so that no rank ever holds more than one whole layer. If tensor names in the files
    differ from the model's (fused experts, older layouts), or the model has persistent buffers, transformers loads the
    whole model first. Raises ModelError.
    """
    mesh = init_device_mesh(setup.device, (setup.ranks.own_rank.count,))
    files = {header.name: file for file in weight_files(setup.folder) for header in read_headers(file)}
    model = _skeleton(setup)
    missing = {name for name, _p in model.named_parameters()} - set(files) - _tied_names(model)
    persistent = set(model.state_dict()) - {name for name, _p in model.named_parameters()}
    if missing or persistent:
        model, files = load_base(setup), {}
    shards = _shard_model(model, mesh, files)
    model.eval().requires_grad_(False)
    return model, shards


def _skeleton(setup: Setup) -> PreTrainedModel:
    """Build the model without weights (meta device); its buffers (rotary tables) are real."""
    config = read_config(setup)
    kind = text_class(config, setup.trust_remote_code)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = kind._from_config(
            config, dtype=DTYPES[setup.precision], attn_implementation=SEGMENT_ATTENTION
        )
    if arithmetic_dtype(setup) != DTYPES[setup.precision]:
        compute_in_float32(model)
    for buffer in model.buffers():
        buffer.data = buffer.to(setup.device)
    return model


def _tied_names(model: PreTrainedModel) -> set[str]:
    """Return the name of the head's weight if it is tied to the embedding, else nothing."""
    head = model.get_output_embeddings()
    return {f"{name}.weight" for name, module in model.named_modules() if module is head and _is_tied(model)}


def _is_tied(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))


def _shard_model(model: PreTrainedModel, mesh: DeviceMesh, files: dict[str, Path]) -> Shards:
    """Read the parameters on the meta device from `files`, and keep this rank's shard of the model."""
    name, layers = decoder_layers(model)
    for index, layer in enumerate(layers):
        _fill(layer, f"{name}.{index}.", files)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {module: name for name, module in model.named_modules()}
    _fill(embedding, f"{names[embedding]}.", files)
    fully_shard(embedding, mesh=mesh, reshard_after_forward=True)
    owner = embedding if _is_tied(model) else _shard_head(head, f"{names[head]}.", files, mesh)
    head.weight = _nothing()
    decoder = decoder_of(model)
    _fill(decoder, f"{names[decoder]}.", files)
    fully_shard(decoder, mesh=mesh, reshard_after_forward=True)
    return Shards(head, owner)


def _shard_head(head: Any, prefix: str, files: dict[str, Path], mesh: DeviceMesh) -> nn.Module:
    """Return a module whose `weight` is the head's weight, sharded by rows."""
    _fill(head, prefix, files)
    whole: Tensor = head.weight.detach()
    part = list(whole.chunk(mesh.size()))[mesh.get_local_rank()].clone().to(mesh.device_type)
    owner: Any = nn.Module()
    owner.weight = DTensor.from_local(part, mesh, [Shard(0)], shape=whole.shape, stride=whole.stride())
    kept: nn.Module = owner
    return kept


def _fill(module: nn.Module, prefix: str, files: dict[str, Path]) -> None:
    """Read the parameters below `module` that are on the meta device from `files`."""
    for path, owner in list(module.named_modules()):
        for attribute, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.device.type != "meta":
                continue
            name = ".".join(part for part in (prefix.rstrip("."), path, attribute) if part)
            with safe_open(files[name], framework="pt") as file:
                tensor = file.get_tensor(name).to(parameter.dtype)
            setattr(owner, attribute, nn.Parameter(tensor, requires_grad=False))


def _nothing() -> nn.Parameter:
    return nn.Parameter(torch.empty(0), requires_grad=False)
