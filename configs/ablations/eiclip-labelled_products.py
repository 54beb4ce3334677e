"""EI-CLIP with L_ent: images classify their entities, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-labelled_products.py
Parent  eiclip_products.py; differs in model.entity_loss_weight
"""

_base_ = '../eiclip_products.py'
model = dict(entity_loss_weight=0.1)
