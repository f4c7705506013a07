"""PreDiff's published arguments as our configurations; what we do not build is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.prediff.architecture import AlignmentConfig, AutoencoderConfig, DenoiserConfig

Arguments = Mapping[str, Any]
# Arguments with one value that is built; global vectors are in no published PreDiff.
_FIXED: dict[str, Any] = {
    "num_global_vectors": 0,
    "downsample_type": "patch_merge",
    "upsample_type": "upsample",
    "use_inter_ffn": True,
    "hierarchical_pos_embed": False,
    "pool": "attention",
    "readout_seq": True,
}
# Without effect on the numbers: initial weights, and global vectors where there are none.
_WITHOUT_EFFECT = frozenset(
    {
        "use_global_vector_ffn",
        "use_global_self_attn",
        "separate_global_qkv",
        "global_dim_ratio",
        "use_dec_self_global",
        "dec_self_update_global",
        "use_dec_cross_global",
    }
)
_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def config_from_published(arguments: Arguments) -> AutoencoderConfig | DenoiserConfig | AlignmentConfig:
    """The configuration of the autoencoder, denoiser or alignment network that `arguments` describe.

    Raises:
        ValueError: not one of the three, or an argument or value that is not built.
    """
    if "latent_channels" in arguments:
        return _autoencoder(arguments)
    if "target_shape" in arguments:
        return DenoiserConfig.model_validate(_backbone(arguments))
    if "out_len" in arguments or "pool" in arguments:
        return _alignment(arguments)
    raise ValueError(f"expected arguments of a PreDiff network; got {sorted(arguments)}")


def _autoencoder(arguments: Arguments) -> AutoencoderConfig:
    for name, block in _BLOCKS.items():
        if set(arguments.get(name, (block,))) != {block}:
            raise ValueError(f"expected {name} of {block} only; got {arguments[name]}")
    return AutoencoderConfig.model_validate({key: value for key, value in arguments.items() if key not in _BLOCKS})


def _alignment(arguments: Arguments) -> AlignmentConfig:
    fields = _backbone(arguments)
    frames = fields.pop("out_len", fields["input_shape"][0])
    if frames != fields["input_shape"][0]:
        raise ValueError(f"expected out_len as many frames as the latent's {fields['input_shape'][0]}; got {frames}")
    return AlignmentConfig.model_validate(fields)


def _backbone(arguments: Arguments) -> dict[str, Any]:
    for name, built in _FIXED.items():
        if arguments.get(name, built) != built:
            raise ValueError(f"expected {name} = {built!r}; got {arguments[name]!r}")
    dropped = _WITHOUT_EFFECT | set(_FIXED)
    return {key: value for key, value in arguments.items() if key not in dropped and not key.endswith("_init_mode")}
