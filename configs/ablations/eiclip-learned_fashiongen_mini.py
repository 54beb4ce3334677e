"""Does the general-domain sense help? mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-learned_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.learner: one learned sense alone
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(learner=dict(general=False))
