"""Does the general-domain sense help? Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-learned_products.py
Parent  eiclip_products.py; differs in model.learner: one learned sense alone
"""

_base_ = '../eiclip_products.py'
model = dict(learner=dict(general=False))
