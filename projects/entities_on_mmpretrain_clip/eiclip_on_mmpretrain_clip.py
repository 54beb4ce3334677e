"""EI-CLIP on the text features of mmpretrain's CLIP, small and of random weights."""

_base_ = '../../configs/eiclip_fashiongen_mini.py'
custom_imports = dict(
    imports=[
        *_base_.custom_imports['imports'],
        'projects.entities_on_mmpretrain_clip.mmpretrain_towers',
    ]
)
clip = dict(
    type='CLIPZeroShot',
    vision_backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=96, num_layers=3, num_heads=3, feedforward_channels=384),
        img_size=64,
        patch_size=8,
        pre_norm=True,
        out_type='cls_token',
    ),
    projection=dict(type='CLIPProjection', in_channels=96, out_channels=128),
    text_backbone=dict(type='CLIPTransformer', width=96, layers=2, heads=3),
    # Texts come encoded by EntityTokenizer. CLIP wants a tokenizer all the same, and this one
    # needs no files.
    tokenizer=dict(type='transformers.ByT5Tokenizer'),
    vocab_size=49408,
    transformer_width=96,
    proj_dim=128,
    data_preprocessor=dict(mean=[127] * 3, std=[64] * 3),
)
model = dict(
    towers=dict(_delete_=True, type='MMPretrainTowers', clip=clip),
    selector=dict(_delete_=True, type='GatedCESelector'),
)
custom_hooks = _base_.custom_hooks[:-1]  # CausalEffectHook is EffectCESelector's
