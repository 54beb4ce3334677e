"""EI-CLIP with the entities of the metadata, without keywords, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-metadata_products.py
Parent  eiclip_products.py; differs in model.selector: keywords are not intervened on
"""

_base_ = '../eiclip_products.py'
model = dict(
    selector=dict(
        _delete_=True, type='KeepTypes', types=['brand', 'article_type', 'colour', 'usage']
    )
)
custom_hooks = _base_.custom_hooks[:-1]
compare_with = 'configs/baselines/clip-meta_products.py'
