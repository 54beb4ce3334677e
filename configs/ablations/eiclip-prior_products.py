"""A prior over senses that is learned, one a type, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-prior_products.py
Parent  eiclip_products.py; differs in model.learner.prior
"""

_base_ = '../eiclip_products.py'
model = dict(learner=dict(prior='learned'))
