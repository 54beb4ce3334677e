"""How far do heads and entities alone lead? Fashion Product Images, both trunks frozen.

Run     python tools/train.py configs/ablations/eiclip-frozen_products.py
Parent  eiclip_products.py; differs in model.towers: no layer of MiniLM trains, and its features are
        computed once
"""

_base_ = '../eiclip_products.py'
model = dict(towers=dict(text_unlocked=0))
custom_hooks = [*_base_.custom_hooks, dict(type='TextFeatureCache')]
