"""A prior that trusts learned senses of frequent entities more, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-frequency_products.py
Parent  eiclip_products.py; differs in model.learner.prior
"""

_base_ = '../eiclip_products.py'
model = dict(learner=dict(prior='frequency'))
