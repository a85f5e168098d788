"""Networks that learn how many bits each channel is worth, and lose the channels that are worth none."""

from scrimp.bits.channels.graph import Barrier, ChannelGraph
from scrimp.bits.channels.summary import LayerSummary, channel_summary
from scrimp.bits.channels.watch import channel_graph
from scrimp.bits.channels.wire import graph_wiring
from scrimp.bits.compress import Compression, self_compress_
from scrimp.bits.copies import same_structure_on_all_ranks
from scrimp.bits.export import ExportReport, export
from scrimp.bits.fit_size import fit_size_
from scrimp.bits.groups import param_groups, rule
from scrimp.bits.layers import QuantizedLayer, quantized_layers
from scrimp.bits.pack import (
    LayerSize,
    PackedInfo,
    PackedLayerInfo,
    SizeReport,
    inspect_packed,
    pack,
    packed_bytes_estimate,
    read_metadata,
    read_packed,
    size_report,
    unpack,
)
from scrimp.bits.penalty import size_penalty
from scrimp.bits.plain import finalize_, freeze_bits_, plain_copy
from scrimp.bits.quantize import quantize
from scrimp.bits.quantizer import BitsExponent, BitsRange, LayerFacts, Quantizer, StepRange
from scrimp.bits.removal import RemovalReport, remove_dead_channels_
from scrimp.bits.size_plan import Objective
from scrimp.bits.target import TargetSize
from scrimp.bits.wiring import Constant, Wiring, set_wiring_

__all__ = [
    "Barrier",
    "BitsExponent",
    "BitsRange",
    "ChannelGraph",
    "Compression",
    "Constant",
    "ExportReport",
    "LayerFacts",
    "LayerSize",
    "LayerSummary",
    "Objective",
    "PackedInfo",
    "PackedLayerInfo",
    "QuantizedLayer",
    "Quantizer",
    "RemovalReport",
    "SizeReport",
    "StepRange",
    "TargetSize",
    "Wiring",
    "channel_graph",
    "channel_summary",
    "export",
    "finalize_",
    "fit_size_",
    "freeze_bits_",
    "graph_wiring",
    "inspect_packed",
    "pack",
    "packed_bytes_estimate",
    "param_groups",
    "plain_copy",
    "quantize",
    "quantized_layers",
    "read_metadata",
    "read_packed",
    "remove_dead_channels_",
    "rule",
    "same_structure_on_all_ranks",
    "self_compress_",
    "set_wiring_",
    "size_penalty",
    "size_report",
    "unpack",
]
