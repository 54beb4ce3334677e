"""EI-CLIP without L_ent: images do not classify their entities, mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-unlabelled_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.entity_loss_weight
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(entity_loss_weight=0.0)
